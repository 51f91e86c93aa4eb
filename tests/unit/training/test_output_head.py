"""The output head with a weight that stays in its file: the same logits, and the memory is given back."""

import pytest
import torch
import torch.nn.functional as F
from learner_helpers import resident_kb
from safetensors.torch import save_file

from introspect_ray.training import output_head
from introspect_ray.training.mapped_tensors import MappedTensors
from introspect_ray.training.output_head import MappedWeight, OutputHead


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_mapped_weight_gives_the_same_logits(tmp_path, monkeypatch, dtype, bias):
    """In slices of 3 rows. The tensor before the weight makes it start within a page of the file."""
    torch.manual_seed(0)
    weight, hidden, odd = torch.randn(10, 8).to(dtype), torch.randn(4, 8).to(dtype), torch.ones(7)
    save_file({"cued": odd, "head": weight}, tmp_path / "file.safetensors")
    monkeypatch.setattr(output_head, "_SLICE_BYTES", 3 * 8 * weight.element_size())
    mapped = MappedWeight(MappedTensors(tmp_path / "file.safetensors"), "head")
    assert torch.equal(mapped.weight_VH, weight) and [len(part) for part in mapped.slices()] == [3, 3, 3, 1]
    b = torch.randn(10).to(dtype) if bias else None
    head = OutputHead(mapped.weight_VH, b, {}, mapped)
    expected = F.linear(hidden.float(), weight.float(), None if b is None else b.float())
    torch.testing.assert_close(head.raw(hidden).float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(head.raw(hidden), head.raw(hidden), rtol=0, atol=0)
    assert head.to(dtype) is head and head.to(torch.float64).mapped is None


def test_the_memory_of_a_mapped_weight_is_given_back(tmp_path, monkeypatch):
    """16 MiB in slices of 4: reading the whole weight keeps all of it in memory, a pass over the slices none."""
    file = tmp_path / "file.safetensors"
    save_file({"head": torch.randn(4096, 1024)}, file)
    monkeypatch.setattr(output_head, "_SLICE_BYTES", 4 << 20)
    mapped = MappedWeight(MappedTensors(file), "head")
    total = mapped.weight_VH.sum()
    assert resident_kb(file) >= 16 << 10
    for part in mapped.slices():
        total -= part.sum()
    assert resident_kb(file) < 1 << 10 and abs(total.item()) < 1, "the slices are not the whole weight"
    assert OutputHead(mapped.weight_VH, None, {}, mapped).raw(torch.ones(1, 1024)).shape == (1, 4096)
    assert resident_kb(file) < 1 << 10
