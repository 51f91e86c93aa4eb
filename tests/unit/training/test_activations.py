"""What is kept of activations: any choice trains the same bits, and "elementwise" computes no product twice."""

import pytest
import torch
from learner_helpers import make_cases, make_config, make_labels, make_model, make_pairs, save_model
from torch.utils._python_dispatch import TorchDispatchMode

from introspect_ray.training.activations import LITTLE, SPARE, activation_bytes, choose
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

CASES = make_cases(7)
MODES = ("none", "elementwise", "layers")
KEPT = {"none": 8 * LITTLE, "elementwise": 4 * LITTLE, "layers": LITTLE}
GIB = 1 << 30


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(name in str(func) for name in ("aten.mm.", "aten.addmm", "flash_attention_for_cpu.default"))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def made(request, tmp_path_factory):
    """(policy, reference)"""
    folder = tmp_path_factory.mktemp("activations")
    policy, m0 = save_model(folder / "policy", request.param), save_model(folder / "m0", request.param, tied=False)
    return policy, build_reference(m0, CASES, None, str(folder))


def two_steps(made, mode, **changes):
    """The metrics of two steps, the weights after them and the products of the second."""
    train = {"activation_checkpointing": mode, **changes.pop("train", {})}
    cfg = make_config(train=train, **changes)
    learner = Learner(cfg, *made, {case.case_id: case for case in CASES})
    assert learner.module.activations.startswith(f"activations: {mode} (as set), about ")
    first = learner.step(make_labels(CASES), make_pairs(CASES))
    with Products() as products:
        second = learner.step(make_labels(CASES, seed=1), make_pairs(CASES))
    return [first, second], learner.weights(), products.count


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora_rank": 4}, {"train": {"dtype": "bfloat16"}}], ids=str)
def test_every_choice_trains_the_same_bits(made, changes):
    found = {mode: two_steps(made, mode, **{k: dict(v) if isinstance(v, dict) else v for k, v in changes.items()})
             for mode in MODES}  # fmt: skip
    metrics, weights, products = found["none"]
    for mode in MODES[1:]:
        assert found[mode][0] == metrics
        assert all(torch.equal(found[mode][1][name], tensor) for name, tensor in weights.items())
    assert found["layers"][2] > products
    if not changes:
        assert found["elementwise"][2] == products


def test_bytes_are_those_of_the_tensors_that_autograd_saves():
    """Of 2 layers at 24 tokens; norms of queries and keys, which the count leaves out, are a tenth here."""
    model, seen = make_model("llama", hidden=64), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights and tensor.numel() >= 24 * 8:
            seen[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=torch.arange(24)[None] + 30, use_cache=False)
    found = sum(size for _, size in seen.values())
    assert found == pytest.approx(activation_bytes(model.config, 24, 4)["none"], rel=0.15)


@pytest.mark.parametrize(
    ("kept", "room", "cheap", "expected"),
    [
        (KEPT, 100 * GIB, True, "elementwise"),  # even with room for all
        (KEPT, 100 * GIB, False, "none"),
        ({**KEPT, "none": LITTLE}, 100 * GIB, True, "none"),  # too little to bother
        (KEPT, int(SPARE * KEPT["elementwise"]) + 5, True, "elementwise"),
        (KEPT, int(SPARE * KEPT["elementwise"]) + 4, True, "layers"),
        (KEPT, int(SPARE * KEPT["none"]) + 4, False, "layers"),
    ],
)
def test_auto_looks_at_what_is_kept_and_at_the_room(kept, room, cheap, expected):
    assert choose("auto", kept, 5, room, cheap=cheap) == expected
    assert choose("none", kept, 5, 0, cheap=cheap) == "none"


def test_the_former_switch():
    assert make_config(train={"activation_checkpointing": True}).train.activation_checkpointing == "layers"
    assert make_config(train={"activation_checkpointing": False}).train.activation_checkpointing == "none"
