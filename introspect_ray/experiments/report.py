"""report.html: one page, readable without a network. Each result stands next to the published one."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from introspect_ray.experiments.claims import DOES_NOT, HOLDS, NOT_RUN, Claim, Verdict
from introspect_ray.experiments.protocol import Estimated

_MARKS = {HOLDS: "good", DOES_NOT: "bad", NOT_RUN: "none"}
_MOST_ROWS = 60  # of a table on the page; the files have all
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
table { border-collapse: collapse; margin: .6rem 0; font-size: 13px } td, th { padding: .25rem .6rem; text-align: left;
  border-bottom: 1px solid #e2e2e2; vertical-align: top } .wide { overflow-x: auto } td.n { text-align: right;
  font-variant-numeric: tabular-nums } .good { color: #0a6b2d } .bad { color: #b3261e } .none { color: #777 }
b.good, b.bad, b.none { white-space: nowrap } img { max-width: 100% } .small { color: #555; font-size: 13px }
"""


@dataclass(frozen=True)
class Judged:
    """A claim with what was measured and what follows from it. frozen: the commit that last changed the claim."""

    claim: Claim
    measured: Estimated | None
    verdict: Verdict
    frozen: str


@dataclass(frozen=True)
class Section:
    """One experiment of the page. png: its figure; None: there is none. state: why there is no result; "" if there is
    one."""

    name: str
    title: str
    published: str
    judged: Sequence[Judged]
    rows: Sequence[Mapping[str, Any]] = ()
    png: bytes | None = None
    notes: Sequence[str] = ()
    seconds: float = 0.0  # of its runs; figures share runs
    runs: int = 0
    state: str = ""


@dataclass(frozen=True)
class Page:
    """about: name and value of what the reader must know of the machine and the code."""

    about: Mapping[str, str]
    seconds: Mapping[str, float]  # by part, over all calls
    sections: Sequence[Section] = field(default_factory=tuple)


def page(content: Page) -> str:
    """The page as HTML."""
    judged = [one for section in content.sections for one in section.judged]
    counts = ", ".join(f"{sum(one.verdict.word == word for one in judged)} {word}" for word in _MARKS)
    facts = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in content.about.items())
    parts = "".join(
        f"<tr><th>{_text(name)}</th><td class=n>{value:.0f} s</td></tr>" for name, value in content.seconds.items()
    )
    body = "".join(map(_section, content.sections))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>introspect-ray: reproduction</title>"
        f"<style>{_STYLE}</style><h1>The paper's experiments, run again</h1>"
        "<p>Each result is next to the published one. A claim was written before the runs; it <b>holds</b> or <b>does "
        "not hold</b> by its interval, or was not run. Shares are in 0..1; a gap is Self − Orig: the share of "
        "held-out cases whose explanation is right about the current policy, minus that about M0.</p>"
        f"<p>Claims: {counts}.</p><table>{facts}</table>"
        f"<p class=small>Time by part, all calls together:</p><table>{parts}</table>"
        f"{_overview(content.sections)}{body}</html>\n"
    )


def _overview(sections: Sequence[Section]) -> str:
    lines = ""
    for section in sections:
        marks = " ".join(f"<b class={_MARKS[one.verdict.word]}>{_text(one.verdict.word)}</b>" for one in section.judged)
        link = f"<a href='#{_text(section.name)}'>{_text(section.name)}</a>"
        lines += f"<tr><td>{link}</td><td>{_text(section.title)}</td><td>{marks or _text(section.state)}</td></tr>"
    return f"<table><tr><th></th><th>experiment</th><th>its claims</th></tr>{lines}</table>"


def _section(section: Section) -> str:
    figure = ""
    if section.png:
        encoded = base64.b64encode(section.png).decode()
        figure = f"<img alt='{_text(section.name)}' src='data:image/png;base64,{encoded}'>"
    notes = "".join(f"<li>{_text(note)}</li>" for note in section.notes)
    state = f"<p class=none>{_text(section.state)}</p>" if section.state else ""
    ran = (
        f"<p class=small>{section.runs} runs, {section.seconds:.0f} s (figures share runs)</p>" if section.runs else ""
    )
    return (
        f"<h2 id='{_text(section.name)}'>{_text(section.name)}: {_text(section.title)}</h2>"
        f"<p><b>Published:</b> {_text(section.published)}</p>{state}{_claims(section.judged)}{figure}"
        f"{f'<ul>{notes}</ul>' if notes else ''}{_rows(section.rows)}{ran}"
    )


def _claims(judged: Sequence[Judged]) -> str:
    if not judged:
        return "<p class=small>No claim was written for this experiment.</p>"
    lines = ""
    for one in judged:
        method = one.measured.method if one.measured and one.verdict.word != NOT_RUN else ""
        lines += (
            f"<tr><td><b class={_MARKS[one.verdict.word]}>{_text(one.verdict.word)}</b></td>"
            f"<td>{_text(one.claim.text)}<br>"
            f"<span class=small>{_text(one.claim.id)}: {_text(one.claim.metric)}</span></td>"
            f"<td>{_text(one.verdict.why)}<br><span class=small>{_text(method)}</span></td>"
            f"<td class=small>{_text(one.frozen)}</td></tr>"
        )
    head = "<tr><th>verdict</th><th>claim</th><th>measured [interval]</th><th>frozen in</th></tr>"
    return f"<table>{head}{lines}</table>"


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    lines = "".join(f"<tr>{''.join(_cell(row.get(name)) for name in names)}</tr>" for row in rows[:_MOST_ROWS])
    more = f"; the first {_MOST_ROWS} are shown" if len(rows) > _MOST_ROWS else ""
    return (
        f"<details><summary>{len(rows)} rows of numbers{more}</summary><div class=wide><table><tr>{head}</tr>{lines}"
        "</table></div></details>"
    )


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "<td class=n>–</td>"
    if isinstance(value, float):
        return f"<td class=n>{value:.4g}</td>"
    return f"<td{' class=n' if isinstance(value, int) else ''}>{_text(value)}</td>"


def _text(value: Any) -> str:
    return html.escape(str(value))
