"""Bounds on a run's labels: a run that goes beyond one stops, with the numbers, before it trains on wrong labels. Pure.

What an alarm watches is also a metric (engine_gap, realised_at_labelling and off_format per step, before.collapse.*
once), so a run with an alarm off still shows what the alarm would have said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from introspect_ray.config import AlarmConfig
from introspect_ray.errors import AlarmError
from introspect_ray.judges import JudgeReport, check_unjudged
from introspect_ray.labels.binomial import binomial_interval, binomial_tail
from introspect_ray.records import BehaviorPair, Label, StepMetrics
from introspect_ray.scores.metrics import Finding

UNLIKELY = 1e-6  # probability below which replies without a verdict are no chance of a few small batches


def stop_on(findings: Sequence[Finding]) -> None:
    """Raise AlarmError with the messages of all findings, if there is any."""
    if findings:
        raise AlarmError("; ".join(map(str, findings)))


def check_step(row: StepMetrics, bounds: AlarmConfig) -> list[Finding]:
    """The metrics of one step that are beyond their bound: `engine_gap` (nats), `off_format` (share of answers)."""
    found: list[Finding] = []
    # Written as "not within", so that NaN is beyond every bound.
    if bounds.engine_gap is not None and row.engine_gap is not None and not row.engine_gap <= bounds.engine_gap:
        message = (
            f"step {row.step}: trainer and engine differ by {row.engine_gap:.3g} nats in a label's logprob on the same "
            f"weights, beyond alarms.engine_gap={bounds.engine_gap:g}: labels are not those of the trained policy. "
            "Make rollout.dtype and train.dtype the same; if both are meant to be coarse (bfloat16), raise the bound"
        )
        found.append(Finding("engine_gap", row.engine_gap, message))
    if bounds.off_format is not None and row.off_format is not None and not row.off_format <= bounds.off_format:
        message = (
            f"step {row.step}: {row.off_format:.1%} of the answers are off format (the likeliest token is no allowed "
            f"label, or the judge gave no verdict on a free response), beyond alarms.off_format="
            f"{bounds.off_format:.1%}: set task.answer_prefix (e.g. '(') for labels, look at the judge for free text, "
            "or raise the bound"
        )
        found.append(Finding("off_format", row.off_format, message))
    return found


@dataclass
class AgreementCounts:
    """How many labels of a run agree with the E(M_t) that they were made from.

    A case that a step holds twice has one ν draw (its key is seed, step and case), so it counts once: otherwise the
    binomial interval of the share would be too narrow.
    """

    agreeing: int = 0
    total: int = 0

    def add(self, labels: Iterable[Label]) -> None:
        """Count the labels of whole steps. Those without a sampled pair (fixed, mixed) do not count."""
        sampled = (label for label in labels if label.current is not None)
        self.add_rows((x.provenance.step, x.case_id, x.explanation == x.current) for x in sampled)

    def add_rows(self, rows: Iterable[tuple[int, str, bool]]) -> None:
        """Count (step, case id, whether the label agrees) of whole steps."""
        agrees = {(step, case_id): agreed for step, case_id, agreed in rows}
        self.agreeing += sum(agrees.values())
        self.total += len(agrees)


def check_agreement(counts: AgreementCounts, requested: float, tail: float | None) -> list[Finding]:
    """`agreement`: a share so far from ν = `requested` had a probability below `tail` (on its side; None: no check)."""
    if tail is None or not counts.total or binomial_tail(counts.agreeing, counts.total, requested) >= tail:
        return []
    share = counts.agreeing / counts.total
    low, high = binomial_interval(requested, counts.total, tail)
    message = (
        f"{counts.agreeing} of {counts.total} labels ({share:.4f}) agree with E(M_t); supervision.agreement="
        f"{requested:g} allows {low:.4f} to {high:.4f} (alarms.agreement={tail:g} per side): the labels are not what "
        "was asked for. Check supervision.agreement and the label table (jobs/audit.py)"
    )
    return [Finding("agreement", share, message)]


def check_verdicts(found: JudgeReport, bound: float) -> None:
    """Raise AlarmError if a judge falls silent while labels are made for training.

    found: on all replies of the steps so far. bound: judge.max_unjudged. A step has few replies, so their share alone
    does not decide: so many without a verdict must also be improbable (UNLIKELY) at that bound.
    """
    if found.unjudged > bound * found.replies and binomial_tail(found.unjudged, found.replies, bound) < UNLIKELY:
        check_unjudged(found, bound)


def worst_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest |ours - theirs|, of at least one value; NaN if any is NaN (`max` alone would pass over it)."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return max(gaps, key=lambda gap: (gap != gap, gap))


def engine_gap(
    pairs: Sequence[BehaviorPair], logprobs: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> float | None:
    """The largest |trainer - engine| label logprob (nats) over the engine's pairs; None without logprobs (free text).

    logprobs: the trainer's, by case id: of the labels on x and on x∖C. Pairs of other cases are passed over.
    """
    pairs = [pair for pair in pairs if pair.case_id in logprobs]
    ours = [value for pair in pairs for side in logprobs[pair.case_id] for value in side]
    theirs = [value for pair in pairs for side in (pair.cued_logprobs, pair.ablated_logprobs) for value in side]
    return worst_gap(ours, theirs) if theirs else None
