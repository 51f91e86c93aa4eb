"""A checkpoint's files: several per rank, written at a time, and none of them missing without an error."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import CheckpointException, filesystem

from introspect_ray.errors import UserError
from introspect_ray.training.fsdp import CHECKPOINT_FILES, load_checkpoint, save_checkpoint


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    return module, optimizer


def test_the_state_lies_in_several_files_and_comes_back(tmp_path: Path):
    module, optimizer = trained()
    save_checkpoint(str(tmp_path), module, optimizer, None).result()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [".metadata", *(f"__0_{number}.distcp" for number in range(CHECKPOINT_FILES))]
    other, its_optimizer = trained()
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    load_checkpoint(str(tmp_path), other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    moments = [[s["exp_avg"] for s in one.state.values()] for one in (optimizer, its_optimizer)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_file_that_could_not_be_written_fails_the_checkpoint(tmp_path: Path, monkeypatch):
    """torch prints an error in one of its further threads and goes on."""
    plain = filesystem.FileSystem.create_stream

    def full(self, path, mode):
        if str(path).endswith("__0_2.distcp"):
            raise OSError(28, "No space left on device")
        return plain(self, path, mode)

    monkeypatch.setattr(filesystem.FileSystem, "create_stream", full)
    written = save_checkpoint(str(tmp_path), *trained(), None)
    with pytest.raises(CheckpointException, match=r"\d+ of \d+ parts were written|No space left"):
        written.result()


class _Attack:
    def __reduce__(self) -> object:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (pickle.dumps(_Attack()), r"its index names (posix|os)\.mkdir, which no checkpoint needs"),
        (b"ctorch.distributed.checkpoint.metadata\nos.system\n.", r"names .*metadata\.os\.system, which no"),
        (b"\x80\x04", r"its index \.metadata cannot be read"),
    ],
)
def test_an_index_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch, index, says):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(str(tmp_path / "saved"), *trained(), None).result()
    (tmp_path / "saved" / ".metadata").write_bytes(index)
    with pytest.raises(UserError, match=says):
        load_checkpoint(str(tmp_path / "saved"), *trained())
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
