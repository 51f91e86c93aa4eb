"""The supervision rules E_sup(t): which explanation a case is trained on at a step (paper §4). Pure.

Every random choice is *counter-based*: a BLAKE2b hash of (seed, step, case id, stream), read as a number in [0, 1).
So a draw depends on its key alone: not on the order of the cases, the process, the number of workers or a resume. It
is the same on every platform and library version (NumPy promises that for its bit generators, not for its shuffles).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from introspect_ray.cases.explanations import all_explanations
from introspect_ray.cases.lookup import records_of
from introspect_ray.config import RunConfig
from introspect_ray.labels.reading import RAW, Reading
from introspect_ray.records import BehaviorPair, Explanation, Label, Provenance
from introspect_ray.rng import bits

NO_STEP = -1  # the step of labels that are made outside training, and in the key of the mixing mask


@dataclass(frozen=True)
class Sources:
    """What labels are made from, apart from the pairs that a step samples. All mappings are by case id."""

    labels: Mapping[str, tuple[str, ...]]  # the allowed labels of the training cases, in plan order
    policy: str  # the name of the policy that is trained
    m0: Mapping[str, BehaviorPair]
    second_policy: str | None = None  # mixed: the name of the second policy
    second: Mapping[str, BehaviorPair] | None = None  # mixed: the pairs of the second policy
    reference: str | None = None  # the name of M0, if that is not `policy` as it was before training
    reading: Reading = RAW  # how pairs are read; those above are read already


def draw(seed: int, step: int, case_id: str, stream: str) -> float:
    """A uniform number in [0, 1), a pure function of its four arguments. `stream` names what it is used for."""
    return (bits(seed, step, case_id, stream) >> 11) / (1 << 53)  # 53 bits: exact in a double, never 1.0


def fixed_label(pair: BehaviorPair, source_model: str, seed: int, step: int = NO_STEP) -> Label:
    """Rule 1: E(M0) at every step. `pair` is M0's. Nothing is drawn (`draw` is NaN); `step` is only recorded."""
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

    `pair` is the current policy's, sampled before the update of `step`. `labels` are the n allowed labels of its case.
    wrong_label="content": the content is uniform over the n - 1 others, and *changed* is recomputed from the current
    y(x), so the label stays self-consistent. wrong_label="any": uniform over the 2n - 1 other (changed, content)
    labels, including those that contradict y(x). A wrong label never equals E(M_t).
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
    step: int = NO_STEP,
) -> Label:
    """Rule 3 (paper §4.3): E of the second policy for a share `mixing_ratio` (α) of the cases, E(M0) for the rest.

    The mask is keyed by seed and case alone, so a case keeps its source for the whole run (`step` is only recorded),
    and the mask of a smaller α lies inside that of a larger one. `sources`: the names of M0 and of the second policy.
    Raises ValueError for pairs of two cases.
    """
    if pair_m0.case_id != pair_second.case_id:
        raise ValueError(f"mixed_label got pairs of two cases, {pair_m0.case_id!r} and {pair_second.case_id!r}")
    mask = mixing_draw(seed, pair_m0.case_id)
    pair, source = (pair_second, sources[1]) if mask < mixing_ratio else (pair_m0, sources[0])
    return Label(pair.case_id, pair.explanation, None, _provenance("mixed", source, pair, seed, step, False, mask))


def mixing_draw(seed: int, case_id: str) -> float:
    """The mask of rule 3: below α a case has the second policy's label, training and held-out cases alike."""
    return draw(seed, NO_STEP, case_id, "mixing")


def _provenance(
    rule: str,
    source: str,
    pair: BehaviorPair,
    seed: int,
    step: int = NO_STEP,
    flipped: bool = False,
    number: float = math.nan,
) -> Provenance:
    return Provenance(rule, source, pair.weight_version, pair.weight_version, seed, step, flipped, number)


def make_labels(
    cfg: RunConfig, sources: Sources, step: int, case_ids: Sequence[str], pairs: Sequence[BehaviorPair]
) -> list[Label]:
    """The labels of `step`, in the order of `case_ids`, by the rule of `cfg`.

    fixed, mixed: made from `sources`; `pairs` is not used. online: made from `pairs`, the current policy's on the same
    cases in the same order, as `sources.reading` reads them. Raises RuntimeError if those are of other cases,
    ValueError if `sources` has no second policy for a mixed rule.
    """
    labels = _labels(cfg, sources, step, case_ids, pairs)
    if sources.reading == RAW:
        return labels
    parents = pairs if cfg.supervision.rule == "online" else records_of(sources.m0, case_ids)
    return [_with_reading(label, pair, sources.reading) for label, pair in zip(labels, parents, strict=True)]


def _with_reading(label: Label, parent: BehaviorPair, reading: Reading) -> Label:
    """The label with how its parents were read. Free text, which has no logprobs, is judged; all else is calibrated."""
    free = not parent.cued_logprobs
    judge = reading.judge if free else ""
    calibration = reading.calibration.identity if reading.calibration and not free else ""
    return replace(label, provenance=replace(label.provenance, judge=judge, calibration=calibration))


def _labels(
    cfg: RunConfig, sources: Sources, step: int, case_ids: Sequence[str], pairs: Sequence[BehaviorPair]
) -> list[Label]:
    rule, m0 = cfg.supervision, sources.reference or sources.policy
    if rule.rule == "fixed":
        return [fixed_label(pair, m0, cfg.seed, step) for pair in records_of(sources.m0, case_ids)]
    if rule.rule == "mixed":
        if sources.second is None or sources.second_policy is None:
            raise ValueError("supervision.rule=mixed needs the pairs of a second policy")
        names = (m0, sources.second_policy)
        both = zip(records_of(sources.m0, case_ids), records_of(sources.second, case_ids), strict=True)
        return [
            mixed_label(first, second, mixing_ratio=rule.mixing_ratio, seed=cfg.seed, step=step, sources=names)
            for first, second in both
        ]
    if [pair.case_id for pair in pairs] != list(case_ids):
        raise RuntimeError(f"step {step}: the engines returned pairs of other cases than were asked for")
    return [
        online_label(
            pair,
            allowed,
            agreement=rule.agreement,
            wrong_label=rule.wrong_label,
            seed=cfg.seed,
            step=step,
            source_model=sources.policy,
        )
        for pair, allowed in zip(pairs, records_of(sources.labels, case_ids), strict=True)
    ]


def realised_agreement(labels: Sequence[Label]) -> float | None:
    """Share of the labels that equal E of the pair sampled for them, 0..1 (paper §4: online label-self agreement).

    Labels without a sampled pair do not count; None if no label has one (fixed, mixed).
    """
    sampled = [label for label in labels if label.current is not None]
    return sum(label.explanation == label.current for label in sampled) / len(sampled) if sampled else None
