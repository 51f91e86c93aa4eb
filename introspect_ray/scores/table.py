"""The printed table of a sweep or a run. Summaries are dicts as in summary.json; shares are shown in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from introspect_ray.scores.aggregate import gaps_by_value
from introspect_ray.scores.drawing import at, leaf
from introspect_ray.scores.metrics import PARTS, over_seeds

SMALL = 0.02  # shares of unparsed explanations and off-format answers up to this are not shown
# Heads and cells are short: a row is under 115 characters wide.
_COLUMNS = ("seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %")
_SELF_EM, _ORIG_EM = ("explanation", "self", "em"), ("explanation", "orig", "em")
_REALISED = (
    ("realised %", ("labels", "realised_at_labelling")),
    ("at use %", ("labels", "realised_at_consumption")),
)
_FAULTS = (
    ("unparsed %", ("explanation", "self", "unparsed")),
    ("off format %", ("behavior", "off_format")),
)


def swept_values(
    summaries: Sequence[Mapping[str, Any]], key: str, values: Sequence[float] | None = None
) -> list[float]:
    """The swept value of each summary: `values` if given, else the field of the summary.

    A summary has no learning_rate or lora_rank, so sweeps of those must pass `values`. Raises ValueError if a summary
    lacks the field, or if there are not as many values as summaries.
    """
    if values is not None:
        if len(values) != len(summaries):
            raise ValueError(f"{len(values)} values of {key} for {len(summaries)} summaries")
        return [float(value) for value in values]
    found = []
    for summary in summaries:
        value = summary.get(leaf(key), summary["supervision"].get(leaf(key)))
        if value is None:
            raise ValueError(f"a summary holds no {key!r}; pass the swept values beside the summaries")
        found.append(float(value))
    return found


def table(
    summaries: Sequence[Mapping[str, Any]],
    key: str,
    values: Sequence[float] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Plain text, one row per swept value, in percent, and a note that says what ± and [ ] are.

    Self and Orig are Explanation EM, "Behavior %" is Behavior EM: means ± sd over seeds. The gap is Self - Orig in
    points, in EM, in content and in *changed?*, each with its 95 % interval: that of `points` (aggregate.aggregate) if
    given. "n/a": a summary lacks the score.

    A second table follows where it has something to say: over ν the realised agreement, when labels were made and when
    they were trained on ("at use"); unparsed explanations and off-format answers where either is above 2 %.
    """
    swept = swept_values(summaries, key, values)
    groups = {x: [s for s, value in zip(summaries, swept) if value == x] for x in sorted(set(swept))}
    gaps = gaps_by_value(summaries, swept, leaf(key), points)
    rows: list[tuple[str, ...]] = [(leaf(key), *_COLUMNS)]
    for x, group in groups.items():
        own, orig, behavior = (_cell(group, path) for path in (_SELF_EM, _ORIG_EM, ("behavior", "em")))
        rows.append((f"{x:g}", str(len(group)), own, orig, *(gap_cell(gaps[x][part]) for part in PARTS), behavior))
    faults = [fault for fault in _FAULTS if any(at(summary, fault[1]) is not None for summary in summaries)]
    more = [*(_REALISED if leaf(key) == "agreement" else ()), *(faults if _faulty(summaries) else ())]
    text = [*aligned(rows), *_notes(groups, gaps)]
    if more:
        about = [(f"{x:g}", *(_cell(group, path, 2) for _, path in more)) for x, group in groups.items()]
        text += ["", *aligned([(leaf(key), *(name for name, _ in more)), *about])]
    return "\n".join(text)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]


def _notes(groups: Mapping[float, Sequence[Any]], gaps: Mapping[float, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    spread = ["±: standard deviation over seeds"] if any(len(group) > 1 for group in groups.values()) else []
    methods = dict.fromkeys(str(gap["em"]["method"]) for gap in gaps.values() if gap["em"]["ci"] is not None)
    return ["; ".join([*spread, *(f"[ ]: {method}" for method in methods)])] if spread or methods else []


def _faulty(summaries: Sequence[Mapping[str, Any]]) -> bool:
    return any((at(summary, path) or 0.0) > SMALL for summary in summaries for _, path in _FAULTS)


def gap_cell(gap: Mapping[str, Any]) -> str:
    """A gap with its "value" and "ci" in points: "+1.2 [-0.3,+2.7]"; without an interval where there is none."""
    if gap["value"] is None:
        return "n/a"
    interval = "" if gap["ci"] is None else f" [{100 * gap['ci'][0]:+.1f},{100 * gap['ci'][1]:+.1f}]"
    return f"{100 * gap['value']:+.1f}{interval}"


def _cell(summaries: Sequence[Mapping[str, Any]], path: tuple[str, ...], digits: int = 1) -> str:
    """Mean ± sd over seeds, in percent."""
    scores = [at(summary, path) for summary in summaries]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):  # the agreement of a run without steps
        return "n/a"
    spread = over_seeds(known)
    mean = f"{100 * spread.mean:.{digits}f}"
    return mean if spread.sd is None else f"{mean}±{100 * spread.sd:.{digits}f}"
