"""E_sup(t): which explanation a case is trained on at a step (paper §4, SPEC §4). Pure.

Every random choice is *counter-based*: a BLAKE2b hash of (seed, step, case id, stream) read as a
number in [0, 1). So a draw depends on nothing but its key: not on the order of the cases, the
process, the number of workers, or a resume; and it is the same on every platform and library version
(NumPy promises that for its bit generators, not for its shuffles).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from introspect_ray.cases.explanations import all_explanations
from introspect_ray.config import RunConfig
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance
from introspect_ray.rng import bits

MADE_ONCE = (
    -1
)  # stands for the step where there is none: in the key of the mixing mask, in labels made outside training


@dataclass(frozen=True)
class Sources:
    """Training cases in plan order (id -> allowed labels) and the pairs that labels are made from without rollouts."""

    labels: Mapping[str, tuple[str, ...]]
    policy: str
    m0: Mapping[str, BehaviorPair]
    second_policy: str | None = None
    second: Mapping[str, BehaviorPair] | None = None


def draw(seed: int, step: int, case_id: str, stream: str) -> float:
    """Uniform number in [0, 1), a pure function of its four arguments. `stream` names the use."""
    return (bits(seed, step, case_id, stream) >> 11) / (1 << 53)  # 53 bits: exact in a double, never 1.0


def fixed_label(pair: BehaviorPair, source_model: str, seed: int, step: int = MADE_ONCE) -> Label:
    """Rule 1: E(M0) for all t. `pair` is M0's; nothing is drawn (`draw` is NaN), `step` is only recorded."""
    return Label(pair.case_id, pair.explanation, None, _provenance("fixed", source_model, pair, seed, step))


def online_label(
    pair: BehaviorPair,
    labels: Sequence[str],
    *,
    agreement: float,
    wrong_label: Literal["content", "any"],
    seed: int,
    step: int,
    source_model: str,
) -> Label:
    """Rule 2 (paper §4.2): E(M_t) with probability `agreement` (ν), else a wrong label.

    `pair` is the current policy's, sampled before the update of `step`. "content": another content,
    uniform over the others, *changed* recomputed from the current y(x), so the label stays
    self-consistent. "any": uniform over all other 2n - 1 (changed, content) labels, those that
    contradict y(x) included (SPEC §4 says all). A wrong label never equals E(M_t).
    """
    truth = pair.explanation
    nu = draw(seed, step, pair.case_id, "agreement")
    flipped = nu >= agreement  # nu < 1: ν = 1 never flips; nu >= 0: ν = 0 always does
    target = _wrong(pair, labels, wrong_label, draw(seed, step, pair.case_id, "wrong")) if flipped else truth
    return Label(pair.case_id, target, truth, _provenance("online", source_model, pair, seed, step, flipped, nu))


def _wrong(pair: BehaviorPair, labels: Sequence[str], wrong_label: str, number: float) -> Explanation:
    if wrong_label == "content":
        others = [Explanation(pair.cued != label, label) for label in labels if label != pair.ablated]
    else:
        others = [e for e in all_explanations(labels) if e != pair.explanation]
    return others[int(number * len(others))]


def mixed_label(
    pair_m0: BehaviorPair,
    pair_second: BehaviorPair,
    *,
    mixing_ratio: float,
    seed: int,
    sources: tuple[str, str],
    step: int = MADE_ONCE,
) -> Label:
    """Rule 3 (paper §4.3): E of the second model for a share α of the cases, E(M0) for the rest.

    The mask is keyed by seed and case only, so a case keeps its source for the whole run whatever
    `step` (recorded, not drawn from), and the mask of a smaller α lies inside that of a larger one.
    `sources`: names of M0 and of the second model.
    """
    if pair_m0.case_id != pair_second.case_id:
        raise ValueError(f"mixed_label got pairs of two cases, {pair_m0.case_id!r} and {pair_second.case_id!r}")
    mask = draw(seed, MADE_ONCE, pair_m0.case_id, "mixing")
    pair, source = (pair_second, sources[1]) if mask < mixing_ratio else (pair_m0, sources[0])
    return Label(pair.case_id, pair.explanation, None, _provenance("mixed", source, pair, seed, step, False, mask))


def _provenance(
    rule: str,
    source: str,
    pair: BehaviorPair,
    seed: int,
    step: int = MADE_ONCE,
    flipped: bool = False,
    number: float = math.nan,
) -> Provenance:
    return Provenance(rule, source, pair.weight_version, pair.weight_version, seed, step, flipped, number)


def make_labels(
    cfg: RunConfig, sources: Sources, step: int, case_ids: Sequence[str], pairs: Sequence[BehaviorPair]
) -> list[Label]:
    """E_sup(step) (SPEC §4): fixed and mixed from `sources`, online from the current `pairs` of the same cases."""
    rule = cfg.supervision
    if rule.rule == "fixed":
        return [fixed_label(sources.m0[i], source_model=sources.policy, seed=cfg.seed, step=step) for i in case_ids]
    if rule.rule == "mixed":
        return [
            mixed_label(
                sources.m0[i],
                sources.second[i],
                mixing_ratio=rule.mixing_ratio,
                seed=cfg.seed,
                step=step,
                sources=(sources.policy, sources.second_policy),
            )
            for i in case_ids
        ]
    if [pair.case_id for pair in pairs] != list(case_ids):
        raise RuntimeError(f"step {step}: the engines returned pairs of other cases than were asked for")
    return [
        online_label(
            pair,
            sources.labels[pair.case_id],
            agreement=rule.agreement,
            wrong_label=rule.wrong_label,
            seed=cfg.seed,
            step=step,
            source_model=sources.policy,
        )
        for pair in pairs
    ]


def realised_agreement(labels: Sequence[Label], current: Mapping[str, Explanation]) -> float:
    """Share of labels equal to the current E(M_t) of their case, 0..1 (paper §4: online label-self agreement).

    `current` maps case ids to E(M_t); a label without an entry raises KeyError, no labels ValueError:
    a share over fewer cases than asked would pass for the real one.
    """
    if not labels:
        raise ValueError("realised_agreement of no labels")
    return sum(label.explanation == current[label.case_id] for label in labels) / len(labels)
