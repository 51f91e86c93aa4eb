"""What judges made of a set of replies: how far two agree, how many got no verdict, and the bound on these."""

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

    def __add__(self, other: JudgeAgreement) -> JudgeAgreement:
        """Both sets of replies together."""
        unjudged = (self.unjudged[0] + other.unjudged[0], self.unjudged[1] + other.unjudged[1])
        counts = dict(Counter(self.counts) + Counter(other.counts))
        examples = (self.examples + other.examples)[:EXAMPLES]
        return JudgeAgreement(self.replies + other.replies, unjudged, counts, examples)

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


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What the judges made of a labelled set. Reports of one judge add up."""

    identity: str  # of the first judge, whose verdicts count
    replies: int
    unjudged: int  # replies without a verdict of the first judge
    said: str  # the opening of its first answer that was no verdict; "" if there is none
    agreement: JudgeAgreement | None  # with the second judge; None without one

    def __add__(self, other: JudgeReport) -> JudgeReport:
        """Both sets of replies together. Raises ValueError for reports of different judges."""
        if self.identity != other.identity or (self.agreement is None) != (other.agreement is None):
            raise ValueError(f"reports of different judges do not add up: {self.identity}, {other.identity}")
        agreement = self.agreement + other.agreement if self.agreement and other.agreement else None
        replies, unjudged = self.replies + other.replies, self.unjudged + other.unjudged
        return JudgeReport(self.identity, replies, unjudged, self.said or other.said, agreement)

    def summary(self) -> dict[str, Any]:
        """As JSON values, for summary.json; `agreement` is None without a second judge."""
        agreement = self.agreement.summary() if self.agreement else None
        return {
            "identity": self.identity,
            "replies": self.replies,
            "unjudged": self.unjudged,
            "agreement": agreement,
        }


def report(
    identity: str, replies: Sequence[Reply], verdicts: Sequence[Verdict], second: Sequence[Verdict] | None = None
) -> JudgeReport:
    """The report on `replies`. second: the second judge's verdicts on them, if there is one."""
    none = [verdict for verdict in verdicts if verdict.label is None]
    said = next((" ".join(verdict.said.split()) for verdict in none if verdict.said.strip()), "")
    agreement = None if second is None else compare(replies, verdicts, second)
    return JudgeReport(identity, len(replies), len(none), said[:_OPENING], agreement)


def check_unjudged(found: JudgeReport, bound: float) -> None:
    """Raises AlarmError if the share of replies without a verdict exceeds `bound` (0..1).

    Meant for many replies at once, such as a label set: on a handful one unclear answer is a large share.
    """
    if found.unjudged <= bound * found.replies:
        return
    example = f"it answered e.g. {found.said!r}" if found.said else "the responses or its answers were empty"
    raise AlarmError(
        f"judge {found.identity} gave no verdict on {found.unjudged} of {found.replies} replies "
        f"({found.unjudged / found.replies:.1%}, bound {bound:.1%}): {example}; look at these responses, make "
        "judge.instruction ask for one of the labels alone (a thinking model: switch thinking off), or raise "
        "judge.max_unjudged"
    )
