"""Bounds that a run must stay in: beyond one it stops with the numbers instead of training on wrong labels. Pure.

Every alarm is a metric as well (engine_gap, realised_at_labelling and off_format of each step, before.collapse.*
once), so a run with an alarm off still shows what it would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from introspect_ray.config import AlarmConfig
from introspect_ray.errors import AlarmError
from introspect_ray.labels.binomial import binomial_interval, binomial_tail
from introspect_ray.records import BehaviorPair, Label, StepMetrics
from introspect_ray.scores.metrics import Finding


def stop_on(findings: Sequence[Finding]) -> None:
    """Raise AlarmError with all messages if there is any finding."""
    if findings:
        raise AlarmError("; ".join(map(str, findings)))


def check_step(row: StepMetrics, bounds: AlarmConfig) -> list[Finding]:
    """What one step's metrics say about its labels: `engine_gap` (nats) and `off_format` (share of answers)."""
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
            f"step {row.step}: the most likely token of {row.off_format:.1%} of the answers is no allowed label, "
            f"beyond alarms.off_format={bounds.off_format:.1%}: set task.answer_prefix (e.g. '('), or raise the bound"
        )
        found.append(Finding("off_format", row.off_format, message))
    return found


@dataclass
class Agreement:
    """Labels that agree with E(M_t), counted over a run.

    A case that a step holds twice is one ν draw (it is keyed by seed, step and case) and counts once:
    otherwise the binomial interval would be too narrow.
    """

    agreeing: int = 0
    draws: int = 0

    def add(self, labels: Sequence[Label]) -> None:
        """Count labels, each step whole in one call. Those without a sampled pair (fixed, mixed) do not count."""
        once = {(x.provenance.step, x.case_id): x.explanation == x.current for x in labels if x.current is not None}
        self.agreeing += sum(once.values())
        self.draws += len(once)


def check_agreement(seen: Agreement, requested: float, tail: float | None) -> list[Finding]:
    """`agreement`: the realised share lies where ν = `requested` puts it with probability below `tail` (a side)."""
    if tail is None or not seen.draws or binomial_tail(seen.agreeing, seen.draws, requested) >= tail:
        return []
    share = seen.agreeing / seen.draws
    low, high = binomial_interval(requested, seen.draws, tail)
    message = (
        f"{seen.agreeing} of {seen.draws} labels ({share:.4f}) agree with E(M_t); supervision.agreement={requested:g} "
        f"allows {low:.4f} to {high:.4f} (alarms.agreement={tail:g} a side): the labels are not what was asked for. "
        "Check supervision.agreement and the label table (jobs/audit.py)"
    )
    return [Finding("agreement", share, message)]


def worst_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest |ours - theirs|; NaN if any is NaN (`max` alone would pass over it)."""
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    return max(gaps, key=lambda gap: (gap != gap, gap))


def engine_gap(
    pairs: Sequence[BehaviorPair], logprobs: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> float | None:
    """Largest |trainer - engine| label logprob (nats) over the pairs; None without pairs."""
    ours = [value for pair in pairs for side in logprobs[pair.case_id] for value in side]
    theirs = [value for pair in pairs for side in (pair.cued_logprobs, pair.ablated_logprobs) for value in side]
    return worst_gap(ours, theirs) if pairs else None
