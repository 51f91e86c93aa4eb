"""The output head in chunks: losses, gradients and read logits as from all logits at once, which never exist."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learner_helpers import make_labels, make_pairs, make_response_cases, make_texts
from torch.utils._python_dispatch import TorchDispatchMode

from introspect_ray.training import chunked_loss
from introspect_ray.training.chunked_loss import Objective, ReferenceRows, evaluate_rows
from introspect_ray.training.loss import Scales
from introspect_ray.training.output_head import OutputHead
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import build_tree, response_paths, text_tree

V, H = 61, 16
SCALES = Scales(0.3, 0.07, 0.2)
SCALINGS = {"plain": {}, "softcap": {"softcap": 2.0}, "both": {"divide": 1.7, "multiply": 0.6}}
CASES, TEXTS = make_response_cases(9), make_texts(2)  # letters, words and free text
M0 = make_pairs(CASES)
TREES = [
    build_tree(case, label.explanation, response_paths(case, M0[case.case_id]))
    for case, label in zip(CASES, make_labels(CASES), strict=True)
]
(BATCH,) = pack([*TREES, *map(text_tree, TEXTS)], 10_000)
KL, LABELS, TARGETS, AUXILIARY, WALK = BATCH.sections
FIRST_TARGET = KL + LABELS


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(scaling, bias):
    """Hidden states, weight and bias with gradient, and M0's rows with a head of their own."""
    tensors = [random(len(BATCH.outputs_N), H, seed=0), random(V, H, seed=1), random(V, seed=2) if bias else None]
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    reference = ReferenceRows(random(KL, H, seed=3), OutputHead(random(V, H, seed=4), None, {}))
    return tensors, OutputHead(tensors[1], tensors[2], scaling), reference


def all_logits_at_once(hidden, weight, bias, scaling, reference):
    """The same results by autograd from one matrix of logits, with the sums written out."""
    logits = F.linear(hidden, weight, bias)
    logits = logits * scaling.get("multiply", 1) / scaling.get("divide", 1)
    cap = scaling.get("softcap")
    logprobs = (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)
    m0 = (reference.hidden_BH @ reference.head.weight_VH.T).log_softmax(-1)
    kl = (m0.exp() * (m0 - logprobs[:KL])).sum()
    ce = -logprobs[FIRST_TARGET + np.arange(TARGETS), BATCH.targets_K].sum()
    texts = -logprobs[FIRST_TARGET + TARGETS + np.arange(AUXILIARY), BATCH.auxiliary_A].sum()
    return SCALES.cross_entropy * ce + SCALES.kl * kl + SCALES.auxiliary * texts, ce, kl, texts, logprobs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_equal_all_logits_at_once(monkeypatch, rows, scaling, bias):
    """One row per chunk, chunks that span rows of several kinds, and a single chunk."""
    tensors, head, reference = inputs(scaling, bias)
    loss, ce, kl, texts, logprobs = all_logits_at_once(*tensors, scaling, reference)
    expected = torch.autograd.grad(2 * loss, [t for t in tensors if t is not None])
    monkeypatch.setitem(chunked_loss.CHUNK_ELEMENTS, "cpu", rows * V)
    out = evaluate_rows(tensors[0], head, BATCH, Objective(reference, SCALES))
    assert min(KL, LABELS, TARGETS, AUXILIARY, WALK) > 0
    assert [value.item() for value in out[:4]] == pytest.approx([x.item() for x in (loss, ce, kl, texts)], rel=1e-5)
    gradients = torch.autograd.grad(2 * out.loss, [t for t in tensors if t is not None])
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.label_logprobs_P, logprobs[BATCH.label_rows_P, BATCH.label_tokens_P])
    assert out.argmax_L.tolist() == logprobs[BATCH.label_rows_L].argmax(-1).tolist()
    assert not out.label_logprobs_P.requires_grad and not out.kl.requires_grad


def test_walk_logits_are_those_of_the_deciding_nodes(monkeypatch):
    tensors, head, _ = inputs({"softcap": 2.0}, True)
    expected = 2 * torch.tanh(F.linear(tensors[0], tensors[1], tensors[2])[-WALK:] / 2)
    monkeypatch.setitem(chunked_loss.CHUNK_ELEMENTS, "cpu", 4 * V)
    out = evaluate_rows(tensors[0], head, BATCH, None)
    torch.testing.assert_close(out.walk_P, expected[BATCH.walk_rows_P, BATCH.walk_tokens_P])
    assert out.loss.item() == 0 and len(out.label_logprobs_P) == len(BATCH.label_rows_P)


@pytest.mark.parametrize(
    ("scales", "still"),
    [
        (Scales(0.3, 0.0, 0.2), slice(0, KL)),
        (Scales(0.3, 0.07, 0.0), slice(FIRST_TARGET + TARGETS, FIRST_TARGET + TARGETS + AUXILIARY)),
    ],
)
def test_weight_zero_leaves_rows_without_gradient(monkeypatch, scales, still):
    """The rows of the KL, or of the auxiliary texts. Rows where labels are read alone never have one."""
    tensors, head, reference = inputs({}, False)
    monkeypatch.setitem(chunked_loss.CHUNK_ELEMENTS, "cpu", 3 * V)
    out = evaluate_rows(tensors[0], head, BATCH, Objective(reference, scales))
    (gradient,) = torch.autograd.grad(out.loss, [tensors[0]])
    assert out.kl.item() > 0 and out.auxiliary.item() > 0, "both are still measured"
    moved = (gradient != 0).any(-1)
    expected = torch.ones(len(gradient), dtype=torch.bool)
    expected[still] = expected[KL:FIRST_TARGET] = expected[-WALK:] = False
    assert torch.equal(moved, expected)


def test_low_precision_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    """Each chunk's product is rounded to bfloat16 once, by at most 2^-9 of it; a bfloat16 sum rounds at every row."""
    tensors, _, reference = inputs({}, False)
    half = [t.detach().bfloat16().requires_grad_() for t in tensors[:2]]
    exact = all_logits_at_once(half[0].float(), half[1].float(), None, {}, reference)[0]
    (expected,) = torch.autograd.grad(exact, [half[1]])
    monkeypatch.setitem(chunked_loss.CHUNK_ELEMENTS, "cpu", V)
    out = evaluate_rows(half[0], OutputHead(half[1], None, {}), BATCH, Objective(reference, SCALES))
    (found,) = torch.autograd.grad(out.loss, [half[1]])
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected.float()).abs().max() < 0.02 * expected.float().abs().max()


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_matrix_is_larger_than_a_chunk(monkeypatch):
    """Chunks have 20 rows of 61. Beside them there are the head's gradient (61 x 16) and the hidden states (N x 16)."""
    tensors, head, reference = inputs({"softcap": 2.0}, False)
    monkeypatch.setitem(chunked_loss.CHUNK_ELEMENTS, "cpu", 20 * V)
    rows = len(BATCH.outputs_N)
    assert rows * V > 2 * 20 * V, "the batch must be larger than the bound"
    with Largest() as largest:
        evaluate_rows(tensors[0], head, BATCH, Objective(reference, SCALES)).loss.backward()
    assert 0 < largest.elements <= max(20 * V, V * H, rows * H)
