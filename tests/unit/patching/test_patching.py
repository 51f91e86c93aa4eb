"""Activation patching: pairs, hooks against a forward pass written out by hand, NLD, correlations by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from introspect_ray.cases.explanations import all_explanations
from introspect_ray.errors import UserError
from introspect_ray.patching import DIRECTIONS, Grid, choose_pairs, correlations, grid_rows, patch_grid
from introspect_ray.patching.forward import patched, read_patched
from introspect_ray.patching.interventions import Intervention, interventions
from introspect_ray.patching.pairs import patched_positions
from introspect_ray.records import BehaviorPair, TokenizedCase

ROLE, CUE, ASK, ANSWER = 1, (40, 41), (50, 51), 2  # tokens
A, B = 10, 11


def case(name: str, *stem: int, cue: tuple[int, ...] = CUE) -> TokenizedCase:
    """x = role stem cue answer, x∖C without the cue, q with the meta-question before the answer's beginning.

    Explanations begin with 20, then 21 (unchanged) or 22 (changed), the label and an end."""
    explanations = {e: (20, 22 if e.changed else 21, {"A": A, "B": B}[e.content], 5) for e in all_explanations("AB")}
    x = (ROLE, *stem, *cue)
    return TokenizedCase(
        name, ("A", "B"), ((A,), (B,)), (*x, ANSWER), (ROLE, *stem, ANSWER), (*x, *ASK, ANSWER), explanations
    )


def answers(name: str, cued: str, ablated: str) -> BehaviorPair:
    return BehaviorPair(name, cued, ablated, (-1.0, -1.0), (-1.0, -1.0), False, False, 0)


CHANGED, UNCHANGED = case("changed", 30, 31), case("unchanged", 32, 33)
BEHAVIORS = [answers("changed", "A", "B"), answers("unchanged", "B", "B")]


def tiny(family: str) -> Any:
    """A random float32 model of two layers, with weights wide enough for peaked distributions."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_cls, model_cls = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return model_cls(config_cls(**sizes, **heads, initializer_range=0.25)).float().eval()


def by_hand(model: Any, tokens: tuple[int, ...], swap: dict[tuple[int, int], torch.Tensor]) -> tuple[Any, list[Any]]:
    """Last logits [V] and layer outputs [T, H] of a decoder run layer by layer; swap: output by (layer, position)."""
    ids = torch.tensor([tokens])
    inner, hidden, positions = model.model, model.model.embed_tokens(ids), torch.arange(len(tokens))[None]
    mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)[None, None]
    outputs = []
    for index, layer in enumerate(inner.layers):
        rotary = inner.rotary_emb(hidden, positions)
        out = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        for (at_layer, position), state in swap.items():
            if at_layer == index:
                hidden[0, position] = state
        outputs.append(hidden[0])
    return model.lm_head(inner.norm(hidden))[0, -1], outputs


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@torch.inference_mode()
def test_every_patch_is_that_of_a_forward_pass_written_out_by_hand(family: str) -> None:
    model = tiny(family)
    base, donor = CHANGED.prompt, UNCHANGED.prompt
    one = Intervention(base, donor, (1, 2, 5), (1, 2, 5), (A,), (B, 12))
    other = Intervention((ROLE, *base), (ROLE, *donor), (2, 3, 6), (2, 3, 6), (A,), (B, 12))  # another length: padding
    readings = read_patched(model, [one, other], [0, 1], token_budget=40)
    for row, intervention in enumerate((one, other)):

        def reading(logits: torch.Tensor) -> float:
            return float(logits[A] - torch.logsumexp(logits[[B, 12]], 0))

        theirs, states = by_hand(model, intervention.donor, {})
        assert readings.base_N[row] == pytest.approx(reading(by_hand(model, intervention.base, {})[0]), abs=1e-4)
        assert readings.donor_N[row] == pytest.approx(reading(theirs), abs=1e-4)
        for layer in (0, 1):
            for index, at in enumerate(intervention.base_at):
                want = reading(by_hand(model, intervention.base, {(layer, at): states[layer][at]})[0])
                assert readings.patched_NLP[row, layer, index] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@torch.inference_mode()
def test_all_positions_of_a_layer_give_the_donor_and_its_own_activations_change_nothing(family: str) -> None:
    model = tiny(family)
    tokens, other = torch.tensor([CHANGED.prompt]), torch.tensor([UNCHANGED.prompt])
    everywhere = torch.arange(tokens.shape[1])[None]
    base, donor = (model(ids, output_hidden_states=True) for ids in (tokens, other))
    assert not torch.allclose(base.logits, donor.logits, atol=1e-2)
    with patched(model, 0, everywhere, donor.hidden_states[1]):
        torch.testing.assert_close(model(tokens).logits, donor.logits)
    with patched(model, 0, everywhere, base.hidden_states[1]):
        torch.testing.assert_close(model(tokens).logits, base.logits)
    torch.testing.assert_close(model(tokens).logits, base.logits)  # the hook is gone


@torch.inference_mode()
def test_nld_is_zero_without_an_effect_and_one_for_the_donor() -> None:
    """The last layer reaches no later token: NLD 0. Token 0 is the same in both prompts: no NLD at all."""
    model = tiny("qwen3")
    pairs = choose_pairs([CHANGED, UNCHANGED], BEHAVIORS)
    grid = patch_grid(model, pairs, layers=[0, 1])
    assert grid.offsets == (-5, -4, -3, -2, -1)  # role, two words, two tokens of the cue
    assert np.isnan(grid.behavior_NDLP[..., 0]).all() and np.isfinite(grid.behavior_NDLP[..., 1:]).all()
    assert (
        np.abs(grid.behavior_NDLP[:, :, 1, 1:]).max() < 1e-4 and np.abs(grid.explanation_NDLP[:, :, 1, 1:]).max() < 1e-4
    )
    logits = {one.case_id: by_hand(model, one.prompt, {})[0] for one in (CHANGED, UNCHANGED)}
    _, states = by_hand(model, CHANGED.prompt, {})
    moved, _ = by_hand(model, UNCHANGED.prompt, {(0, 2): states[0][2]})
    base, donor, now = (float(one[A] - one[B]) for one in (logits["unchanged"], logits["changed"], moved))
    assert grid.behavior_NDLP[0, 0, 0, 2] == pytest.approx((now - base) / (donor - base), abs=1e-3)
    assert grid.behavior_gap_ND[0] == pytest.approx([abs(donor - base)] * 2, abs=1e-4)
    assert patch_grid(model, pairs).layers == (0,)


def test_what_is_read_after_which_tokens() -> None:
    (pair,) = choose_pairs([CHANGED, UNCHANGED], BEHAVIORS)
    behavior, explanation = interventions(pair, "changed->unchanged", "cued", "prefix")
    assert behavior is not None
    assert (behavior.base, behavior.donor) == (UNCHANGED.prompt, CHANGED.prompt)
    assert (behavior.plus, behavior.minus) == ((A,), (B,))  # the donor says A, the patched prompt B
    assert (explanation.base, explanation.donor) == ((*UNCHANGED.question, 20), (*CHANGED.question, 20))
    assert (explanation.plus, explanation.minus) == ((22,), (21,))
    assert interventions(pair, "changed->unchanged", "ablated", "prefix").behavior is None  # both answer B


def test_positions_of_the_cued_and_of_the_ablated_prompt() -> None:
    assert [list(at) for at in patched_positions(CHANGED, "cued", "prefix")] == [[0, 1, 2, 3, 4]] * 2
    assert [list(at) for at in patched_positions(CHANGED, "cued", "cue")] == [[3, 4]] * 2
    assert patched_positions(CHANGED, "ablated", "prefix") == ((0, 1, 2), (0, 1, 2))
    first = TokenizedCase(
        "first", ("A", "B"), ((A,), (B,)), (1, 40, 41, 30, 31, 2), (1, 30, 31, 2), (1, 40, 41, 30, 31, 50, 2), {}
    )
    assert patched_positions(first, "ablated", "prefix") == ((0, 1, 2), (0, 3, 4))  # a cue before the text


def test_pairs_share_cue_and_length_and_no_question() -> None:
    cases = [
        CHANGED,
        UNCHANGED,
        case("longer", 32, 33, 34),
        case("other cue", 35, 36, cue=(40, 42)),
        case("again", 30, 31),
    ]
    kinds = [("A", "B"), ("B", "B"), ("B", "B"), ("B", "B"), ("A", "B")]
    behaviors = [answers(one.case_id, *kind) for one, kind in zip(cases, kinds)]
    (pair,) = choose_pairs(cases, behaviors)  # "again" asks the question of "changed"
    assert {pair.changed.case.case_id, pair.unchanged.case.case_id} <= {"changed", "again", "unchanged"}
    assert choose_pairs(
        [CHANGED, case("longer", 32, 33, 34)], [BEHAVIORS[0], answers("longer", "B", "B")], region="cue"
    )
    for partner, answer in (("longer", "B"), ("unchanged", "A")):  # another length; the same answer
        member = {one.case_id: one for one in cases}[partner]
        with pytest.raises(UserError, match="no two prompts to patch between among 2 cases, 1 of them changed"):
            choose_pairs([CHANGED, member], [BEHAVIORS[0], answers(partner, answer, answer)])


def grid_of(behavior: Any, explanation: Any, gap: Any) -> Grid:
    """behavior, explanation: [N, tokens], the same in both directions; one layer."""
    both = [np.repeat(np.array(values, float)[:, None, None], 2, 1) for values in (behavior, explanation)]
    gaps = np.repeat(np.array(gap, float)[:, None], 2, 1)
    return Grid("cued", (0,), (-3, -2, -1), both[0], both[1], gaps, gaps)


def test_correlation_of_means_by_hand() -> None:
    """Means (0, 1, 2) and (1, 0, 2): deviations (-1, 0, 1) and (0, -1, 1), r = 1 / sqrt(2 · 2) = 1/2."""
    grid = grid_of([[0, 0, 4], [0, 2, 0]], [[2, 0, 2], [0, 0, 2]], [1, 1])
    found = correlations(grid)
    assert [found[name].value for name in ("all", *DIRECTIONS)] == pytest.approx([0.5] * 3)
    assert (found["all"].points, found[DIRECTIONS[0]].points, found["all"].pairs) == (6, 3, 2)
    # a bootstrap draw is pair 0 twice, pair 1 twice, or both: r of (0, 0, 4) and (2, 0, 2) is 1/2, pair 1 gives -1/2
    assert (found["all"].low, found["all"].high) == pytest.approx((-0.5, 0.5))
    assert [row["nld_behavior"] for row in grid_rows(grid)[:3]] == [0, 1, 2]


def test_pairs_that_are_too_close_are_left_out_or_weigh_little() -> None:
    """The second pair's gap is 0.1 of the first one's: weighted means are (1 · v0 + 0.1 · v1) / 1.1."""
    grid = grid_of([[0, 1, 2], [11, 1, 2]], [[0, 1, 2], [0, 1, 2]], [1, 0.1])
    assert [row["nld_behavior"] for row in grid_rows(grid)[:3]] == [0, 1, 2]
    assert grid_rows(grid)[0]["pairs"] == 1
    assert [row["nld_behavior"] for row in grid_rows(grid, weighted=True)[:3]] == pytest.approx([1, 1, 2])
    assert math.isnan(correlations(grid, min_gap=2)["all"].value)
