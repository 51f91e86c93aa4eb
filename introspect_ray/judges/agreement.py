"""How far two judges agree on the same replies, and the bound on replies that a judge gave no verdict on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.errors import AlarmError
from introspect_ray.judges.protocol import Reply, Verdict

EXAMPLES = 10
_OPENING = 200  # characters of a response that an example shows


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
    """Two judges on the same replies. Replies that either gave no verdict on count in `unjudged` alone."""

    replies: int
    unjudged: tuple[int, int]  # replies without a verdict, by judge
    counts: dict[tuple[str, str], int]  # (first's label, second's label) -> replies
    examples: tuple[dict[str, str], ...]  # the first disagreements: case_id, response (its opening), first, second

    @property
    def compared(self) -> int:
        """Replies that both gave a verdict on."""
        return sum(self.counts.values())

    @property
    def disagreements(self) -> int:
        return sum(count for (first, second), count in self.counts.items() if first != second)

    @property
    def disagreement(self) -> float | None:
        """Share of the compared replies that the judges label differently; None if nothing was compared."""
        return self.disagreements / self.compared if self.compared else None

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e), with p_e from the judges' own label shares.

        None where it is undefined: nothing compared, or both always said the same one label.
        """
        marginals: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for pair, count in self.counts.items():
            for marginal, label in zip(marginals, pair, strict=True):
                marginal[label] += count
        total = self.compared
        by_chance = sum(count * marginals[1][label] for label, count in marginals[0].items())  # p_e * total ** 2
        if by_chance == total**2:
            return None
        return 1 - self.disagreements * total / (total**2 - by_chance)

    def summary(self) -> dict[str, Any]:
        """As JSON values, for summary.json."""
        return {
            "replies": self.replies,
            "compared": self.compared,
            "unjudged": list(self.unjudged),
            "disagreements": self.disagreements,
            "disagreement": self.disagreement,
            "kappa": self.kappa,
            "counts": [{"first": a, "second": b, "replies": count} for (a, b), count in sorted(self.counts.items())],
            "examples": list(self.examples),
        }


def compare(replies: Sequence[Reply], first: Sequence[Verdict], second: Sequence[Verdict]) -> JudgeAgreement:
    """The verdicts of two judges on `replies`, all three in the same order. Raises ValueError for unequal lengths."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, str]] = []
    for reply, (a, _), (b, _) in zip(replies, first, second, strict=True):
        if a is None or b is None:
            continue
        counts[a, b] += 1
        if a != b and len(examples) < EXAMPLES:
            opening = reply.response[:_OPENING]
            examples.append({"case_id": reply.case_id, "response": opening, "first": a, "second": b})
    unjudged = (sum(a is None for a, _ in first), sum(b is None for b, _ in second))
    return JudgeAgreement(len(replies), unjudged, dict(counts), tuple(examples))


def check_unjudged(verdicts: Sequence[Verdict], bound: float, judge: str = "the judge") -> None:
    """Raises AlarmError if the share of `verdicts` without a label exceeds `bound` (0..1); `judge` names who gave them.

    Meant for many verdicts at once, such as a label set: on a handful one unclear answer is a large share.
    """
    none = [verdict for verdict in verdicts if verdict.label is None]
    if len(none) <= bound * len(verdicts):
        return
    said = next((" ".join(verdict.said.split()) for verdict in none if verdict.said.strip()), "")
    example = f"it answered e.g. {said[:_OPENING]!r}" if said else "the responses or its answers were empty"
    raise AlarmError(
        f"{judge} gave no verdict on {len(none)} of {len(verdicts)} replies ({len(none) / len(verdicts):.1%}, bound "
        f"{bound:.1%}): {example}; look at these responses, make judge.instruction ask for one of the labels alone "
        "(a thinking model: switch thinking off), or raise judge.max_unjudged"
    )
