"""summary.json, the result of one training run: the models below document its keys and check them.

Shares are fractions in 0..1. A value that does not apply is null. NaN and infinity never appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from introspect_ray.config import RunConfig


def _ascending(interval: list[float]) -> list[float]:
    if interval[0] > interval[1]:
        raise ValueError("the lower bound is above the upper bound")
    return interval


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
Difference = Annotated[float, Field(ge=-1, le=1)]
DifferenceInterval = Annotated[list[Difference], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
Seconds = Annotated[float, Field(ge=0)]


class _Block(BaseModel):
    # strict: true is no count, and 4.0 is none either.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Supervision(_Block):
    rule: Text
    """supervision.rule: fixed, online or mixed."""
    agreement: Share | None
    """online: ν, the requested share of labels that agree with E(M_t)."""
    mixing_ratio: Share | None
    """mixed: α, the share of labels taken from the second policy."""


class Cases(_Block):
    train: Count
    """Training cases."""
    test: Count
    """Held-out cases of the test split, over which all blocks from "explanation" to "sources" are measured."""
    questions: Count
    """Their questions: cases with the same x∖C are one."""


class ExplanationScores(_Block):
    """The policy's explanations against one truth; unparseable ones are wrong (eval.decode=trie: there are none)."""

    em: Share
    """Explanation EM (paper eq. 3): *changed?* and content are both right."""
    em_ci: Interval
    """[low, high]: the 95 % Wilson interval of `em`, of as many cases as they are worth where questions repeat (cases /
    design effect)."""
    content: Share
    """The content is right: the explanation names y(x∖C)."""
    changed_accuracy: Share
    """*changed?* is right, whatever label is named."""
    changed_f1: Share | None
    """F1 of the class "changed"; null where no case is of it and no explanation claims it."""
    unchanged_f1: Share | None
    """F1 of the class "unchanged"; null likewise."""
    unparsed: Share | None
    """Unparseable explanations; null with eval.decode=trie."""


class Explanation(_Block):
    orig: ExplanationScores
    """Orig: against E(M0), what the untrained policy did."""
    self: ExplanationScores
    """Self: against E(M_t), what the trained policy does."""


class Behavior(_Block):
    """The trained policy's answers against those of M0 (in sources.behavior.second: of the second policy)."""

    em: Share
    """Behavior EM (paper eq. 4): y(x) and y(x∖C) are both as M0's."""
    cued: Share
    """y(x) is as M0's."""
    ablated: Share
    """y(x∖C) is as M0's."""
    off_format: Share
    """Share of the trained policy's answers (two per case) whose most likely token is no allowed label."""


class Disagreement(_Block):
    """Where Self and Orig differ (paper §3.2): the cases in which E(M_t) is not E(M0)."""

    fraction: Share
    """Their share of all held-out cases. The shares below are of these cases, null if there are none; they sum to 1."""
    self: Share | None
    """Explained as E(M_t)."""
    orig: Share | None
    """Explained as E(M0)."""
    neither: Share | None
    """Explained as neither, or unparseable."""


class PairedGap(_Block):
    """Self minus Orig of one score over the same cases, in -1..1."""

    value: Difference
    ci: DifferenceInterval
    """[low, high]: the 95 % interval of `value`, paired over cases (Agresti and Min 2005), of as many as they are worth
    where questions repeat (cases / design effect). It says nothing about other seeds."""


class Gap(_Block):
    """Self minus Orig, in exact match and in its two parts, which may cancel in it."""

    em: PairedGap
    content: PairedGap
    changed_accuracy: PairedGap


class Dev(_Block):
    """The held-out cases that may be looked at to choose a setting: no result is of them."""

    cases: Annotated[int, Field(ge=1)]
    questions: Annotated[int, Field(ge=1)]
    gap: Gap
    """A sweep's objective is its `em`."""


class Group(_Block):
    """The cases of one group (cue type)."""

    explanation: Explanation
    behavior: Behavior
    cases: Annotated[int, Field(ge=1)]
    """Held-out cases of the group."""


class SourceBehavior(_Block):
    m0: Behavior
    """The trained policy's answers against those of M0: as the block "behavior"."""
    second: Behavior
    """Against those of the second policy."""


class Sources(_Block):
    """A mixed run's explanations against every source of its labels, and its behaviour to both (paper fig. 6)."""

    self: ExplanationScores
    """Against E of the trained policy: as explanation.self."""
    m0: ExplanationScores
    """Against E(M0): as explanation.orig."""
    second: ExplanationScores
    """Against E of the second policy."""
    mixture: ExplanationScores
    """Against the source that the mixing mask draws for each held-out case, as it does for training cases."""
    behavior: SourceBehavior


class Calibration(_Block):
    """How labels were read off logprobs, for the whole run."""

    kind: Literal["contextual"]
    """task.calibration."""
    identity: Text
    """Hash of the offsets, as in the provenance of every label."""


class Labels(_Block):
    """The labels that the run was trained on."""

    requested_agreement: Share | None
    """online: ν."""
    realised_at_labelling: Share | None
    """online: share of all labels that equal E of the pair they were made from."""
    realised_at_consumption: Share | None
    """Share of labels that equal E(M_t) at the step that trains on them, mean over steps; null without such steps."""
    split_pairs: Count
    """Labels whose y(x) and y(x∖C) come from different weight versions. Must be 0."""


class Timing(_Block):
    """Wall-clock seconds. Parts that run side by side overlap, so they do not add up to `total`.

    The trials of a sweep share the start of the engines and the evaluation of M0; every trial counts them.
    """

    setup: Seconds
    """Starting the engines and the training workers, with all that no other part names."""
    rollout: Seconds
    """Labelling while training: summed over the engines, or by rank 0 where the learner labels."""
    relabel: Seconds
    """Making labels from behaviour pairs and recording them."""
    train: Seconds
    """Training steps, on rank 0."""
    sync: Seconds
    """Starting weight deliveries to the engines, on rank 0."""
    eval: Seconds
    """Labelling and evaluating M0 before training, and evaluating the trained policy after it."""
    total: Seconds


class Summary(_Block):
    task: Text
    """task.name."""
    policy: Text
    """M0, as in the config."""
    method: Text
    """full or lora."""
    kl_weight: float
    """λ of paper eq. 2."""
    seed: Count
    steps: Count
    """Training steps."""
    lag: Count
    """Step t trained on labels of weight version t - lag."""
    supervision: Supervision
    calibration: Calibration | None
    """null where task.calibration is none."""
    judges: list[dict[str, Any]] | None
    """Of each set of responses that was judged: by whom, how many got no verdict, and how far a second judge agrees;
    null for closed labels."""
    loss_normalisation: Literal["token", "sequence"]
    """The means of eq. 2 are over tokens or over cases, which decides what `kl_weight` weighs."""
    cases: Cases
    explanation: Explanation
    behavior: Behavior
    disagreement: Disagreement
    gap: Gap
    groups: dict[str, Group]
    """By group, in the order of the held-out cases; {} where no case has a group. If only some have one, the key ""
    holds the others."""
    sources: Sources | None
    """null unless supervision.rule is mixed."""
    dev: Dev | None
    """null where eval.dev_fraction is 0 or there are fewer than 10 held-out questions: then all of them are test."""
    labels: Labels
    timing_s: Timing


def make_summary(
    cfg: RunConfig,
    scores: Mapping[str, Mapping[str, Any] | None],
    *,
    cases: Mapping[str, int],
    labels: Mapping[str, float | int | None],
    timing: Mapping[str, float],
    calibration: Mapping[str, str] | None = None,
    judges: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of summary.json, checked. `scores` as from `evaluation.evaluate`; `timing` in seconds.

    Raises ValueError if a part misses a key, has an unknown one, or holds a value out of its range.
    """
    rule = cfg.supervision
    summary = {
        "task": cfg.task.name,
        "policy": cfg.policy,
        "method": cfg.method,
        "kl_weight": cfg.kl_weight,
        "seed": cfg.seed,
        "steps": cfg.steps,
        "lag": cfg.lag,
        "supervision": {
            "rule": rule.rule,
            "agreement": rule.agreement if rule.rule == "online" else None,
            "mixing_ratio": rule.mixing_ratio if rule.rule == "mixed" else None,
        },
        "calibration": None if calibration is None else dict(calibration),
        "judges": None if judges is None else [dict(report) for report in judges],
        "loss_normalisation": cfg.loss_normalisation,
        "cases": dict(cases),
        **scores,
        "labels": dict(labels),
        "timing_s": dict(timing),
    }
    check_summary(summary)
    return summary


def check_summary(summary: Mapping[str, Any]) -> None:
    """Raise ValueError, in one line, naming every missing or unknown key and every value out of its range."""
    try:
        Summary.model_validate(summary)
    except ValidationError as error:
        problems = "; ".join(sorted(map(_problem, error.errors())))
        raise ValueError(f"summary.json is not as documented: {problems}") from None


def _problem(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        return f"{key} is not a known key"
    return f"{key} is {error['input']!r}: {error['msg'].removeprefix('Value error, ')}"
