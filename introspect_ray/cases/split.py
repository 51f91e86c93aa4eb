"""Seeded splits and choices of cases by hash: independent of file order, process and library version.

Questions and cases are represented by 64-bit hashes, so that splitting a file takes 8 bytes per case. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.rng import bits


def question_key(case: Case, seed: int) -> int:
    """A hash of the turns of x∖C: equal for cases that ask the same question under different cues."""
    return bits(seed, "split", tuple((m["role"], m["content"]) for m in case.ablated_messages))


def choice_key(case_id: str, seed: int, side: str) -> int:
    """The hash by which a limit chooses the cases of a side ("train" or "test"): the smallest ones."""
    return bits(seed, side, case_id)


def held_out(questions: NDArray[np.uint64], test_fraction: float) -> NDArray[np.bool_]:
    """Which cases [n] are held out, by their question keys [n]: all cases of a question or none.

    round(test_fraction * questions) questions are held out, but at least one and not all. Raises UserError if there
    are fewer than two questions.
    """
    distinct = np.unique(questions)
    if len(distinct) < 2:
        raise UserError(
            f"{len(questions)} cases on {len(distinct)} questions cannot be split into training and held-out ones: "
            "give at least two cases that differ without the cue, or task.test_path"
        )
    count = min(max(1, round(test_fraction * len(distinct))), len(distinct) - 1)
    tested: NDArray[np.bool_] = questions <= distinct[count - 1]
    return tested


def chosen(choices: NDArray[np.uint64], limit: int) -> NDArray[np.bool_]:
    """Which cases [n] a limit keeps, by their choice keys [n]. A smaller limit keeps a subset of them."""
    kept = np.zeros(len(choices), bool)
    kept[np.argsort(choices, kind="stable")[:limit]] = True
    return kept
