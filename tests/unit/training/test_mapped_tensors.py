"""Mapped tensors: safetensors reads from the file what was written to them, and their memory can be given back."""

import resource

import pytest
import torch
from learner_helpers import resident_kb
from safetensors.torch import load_file

from introspect_ray.errors import UserError
from introspect_ray.training.mapped_tensors import MappedTensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_in_the_file(tmp_path, dtype):
    path = tmp_path / "file.safetensors"
    written = MappedTensors.create(path, {"odd": (7,), "head": (5, 3)}, dtype)
    head = torch.arange(15, dtype=dtype).view(5, 3)
    written.tensors["head"][1:] = head[1:]
    found, expected = load_file(path), torch.cat([torch.zeros(1, 3, dtype=dtype), head[1:]])
    assert sorted(found) == ["head", "odd"] and torch.equal(found["head"], expected)
    assert torch.equal(found["odd"], torch.zeros(7, dtype=dtype))
    assert torch.equal(MappedTensors(path).tensors["head"], expected)
    with pytest.raises(FileExistsError):
        MappedTensors.create(path, {"head": (5, 3)}, dtype)


def test_writing_to_a_file_opened_for_reading_does_not_change_it(tmp_path):
    path = tmp_path / "file.safetensors"
    MappedTensors.create(path, {"head": (5, 3)}, torch.float32)
    MappedTensors(path).tensors["head"][:] = 1
    assert torch.equal(load_file(path)["head"], torch.zeros(5, 3))


def test_released_memory_is_given_back_and_the_file_keeps_its_content(tmp_path):
    """Of 16 MiB, first 4 MiB in the middle are released, then all."""
    path = tmp_path / "file.safetensors"
    file = MappedTensors.create(path, {"head": (4096, 1024)}, torch.float32)
    file.tensors["head"][:] = 1
    assert resident_kb(path) >= 16 << 10
    file.release("head", 4 << 20, 8 << 20)
    assert (12 << 10) <= resident_kb(path) < (12 << 10) + 64
    file.release_all()
    assert resident_kb(path) == 0
    assert file.tensors["head"].sum() == 4096 * 1024


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(UserError, match=r"file.safetensors needs 4 MiB, which the disk does not give .*cache_dir"):
            MappedTensors.create(tmp_path / "file.safetensors", {"head": (1024, 1024)}, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
