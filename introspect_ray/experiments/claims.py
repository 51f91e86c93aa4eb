"""Claims, written before the runs (claims.yaml), and what the measured numbers say about each.

A claim is judged by its interval, not by its value: "above 0" holds if the whole interval lies above 0.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from introspect_ray.errors import UserError
from introspect_ray.experiments.protocol import Estimated

FILE = Path(__file__).with_name("claims.yaml")
HOLDS, DOES_NOT, NOT_RUN = "holds", "does not hold", "not run"
Comparison = Literal["above", "below", "at least", "at most", "equivalent"]
BUNDLED = "bundled"  # among `worlds`: the organism of the package


@dataclass(frozen=True)
class Claim:
    """One claim. comparison: above, below: the whole interval lies on that side of `threshold`; at least, at most: the
    value does; equivalent: the whole interval lies within ±threshold ("no gap")."""

    id: str
    experiment: str
    text: str
    metric: str  # in words, what is measured
    comparison: Comparison
    threshold: float
    worlds: tuple[Any, ...]  # numbers, or "bundled"
    seeds: tuple[int, ...]  # of training


class Verdict(NamedTuple):
    """word: HOLDS, DOES_NOT or NOT_RUN; why: the numbers it rests on, or what is missing."""

    word: str
    why: str


def judge(claim: Claim, measured: Estimated | None, ran: Collection[tuple[Any, int]] | None) -> Verdict:
    """What a measured number says about a claim.

    measured: None if there is none. ran: the (world, seed) of all finished runs of the experiment; None: they are not
    compared with those that the claim names. A claim on runs that are not all there is not run, whatever the rest says.
    """
    if measured is None or not math.isfinite(measured.value):
        return Verdict(NOT_RUN, "there is no number")
    wanted = {(world, seed) for world in claim.worlds for seed in claim.seeds}
    if ran is not None and (gone := sorted(wanted - set(ran), key=str)):
        return Verdict(NOT_RUN, f"{len(gone)} of its {len(wanted)} runs are missing, the first of world {gone[0][0]}, "
                       f"seed {gone[0][1]}")  # fmt: skip
    if ran is not None and measured.runs < len(wanted):
        return Verdict(
            NOT_RUN, f"the number rests on {measured.runs} of its {len(wanted)} runs; an alarm stopped others"
        )
    bound, shown = claim.threshold, f"{measured.value:+.3f} [{measured.low:+.3f}, {measured.high:+.3f}]"
    holds = {
        "above": measured.low > bound,
        "below": measured.high < bound,
        "at least": measured.value >= bound,
        "at most": measured.value <= bound,
        "equivalent": -bound < measured.low and measured.high < bound,
    }[claim.comparison]
    sign = {"equivalent": "within ±"}.get(claim.comparison, f"{claim.comparison} ")
    return Verdict(HOLDS if holds else DOES_NOT, f"{shown} {'is' if holds else 'is not'} {sign}{bound:g}")


def load_claims(file: Path = FILE) -> list[Claim]:
    """The claims of a file, in order. Raises UserError, naming the claim, for what is no claim or a repeated id."""
    claims: list[Claim] = []
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")) or []:
        name = entry.get("id") if isinstance(entry, dict) else entry
        try:
            claim = Claim(**{**entry, "worlds": tuple(entry["worlds"]), "seeds": tuple(entry["seeds"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{file.name}, claim {name!r}: {error}; it needs all of {list(_fields())}") from None
        if claim.comparison not in get_args(Comparison):
            raise UserError(f"{file.name}, claim {name!r}: comparison={claim.comparison!r} is none of "
                            f"{', '.join(get_args(Comparison))}")  # fmt: skip
        claims.append(claim)
    if repeated := [claim.id for at, claim in enumerate(claims) if claim.id in {one.id for one in claims[:at]}]:
        raise UserError(f"{file.name}: claim {repeated[0]!r} is there twice")
    return claims


def _fields() -> Sequence[str]:
    return tuple(Claim.__dataclass_fields__)


def frozen_in(file: Path = FILE) -> dict[str, str]:
    """By claim id, the commit in which its lines were last changed: "1a2b3c4 2026-11-28"; else why there is none."""
    try:
        blame = subprocess.run(
            ["git", "-C", str(file.parent), "blame", "--porcelain", file.name],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return _for_all(file, "no git")
    if blame.returncode:
        return _for_all(file, "not under version control")
    return latest_commits(blame.stdout)


def _for_all(file: Path, why: str) -> dict[str, str]:
    return {claim.id: why for claim in load_claims(file)}


def latest_commits(porcelain: str) -> dict[str, str]:
    """By claim id, the latest commit of the lines of its block, from `git blame --porcelain`.

    A block begins at "- id:". Lines that are not committed make their claim "not committed".
    """
    times: dict[str, int] = {}
    found: dict[str, tuple[int, str]] = {}
    commit, claim = "", ""
    for line in porcelain.splitlines():
        if line.startswith("\t"):
            text = line[1:]
            if text.startswith("- id:"):
                claim = text.removeprefix("- id:").strip()
            if claim and text.strip():
                found[claim] = max(found.get(claim, (0, "")), (_age(commit, times), commit))
        elif line.startswith("committer-time "):
            times[commit] = int(line.split()[1])
        elif len(word := line.split(" ")[0]) == 40:
            commit = word
    return {claim: _shown(*of) for claim, of in found.items()}


def _age(commit: str, times: Mapping[str, int]) -> int:
    """Seconds since 1970; lines that are not committed are later than all others."""
    return times.get(commit, 0) if commit.strip("0") else 1 << 62


def _shown(age: int, commit: str) -> str:
    if not commit.strip("0"):
        return "not committed"
    from datetime import UTC, datetime

    return f"{commit[:7]} {datetime.fromtimestamp(age, UTC):%Y-%m-%d}"
