"""Seeded splits and choices of cases by hash: independent of file order, process and library version.

Questions and cases are told apart by 64-bit hashes, so that a file is split in 8 bytes a case.
"""

from __future__ import annotations

import numpy as np

from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.rng import bits


def question_key(case: Case, seed: int) -> int:
    """What two cases share if they ask the same thing under different cues: a hash of the turns of x∖C."""
    return bits(seed, "split", tuple((m["role"], m["content"]) for m in case.ablated_messages))


def choice_key(case_id: str, seed: int, side: str) -> int:
    """By which a limit chooses the cases of a side ("train" or "test")."""
    return bits(seed, side, case_id)


def held_out(questions: np.ndarray, test_fraction: float) -> np.ndarray:
    """Which cases [n] are held out, from their question keys (uint64 [n]): all cases of a question or none.

    round(test_fraction * questions) questions, at least one, are. Raises UserError if there are fewer than two.
    """
    distinct = np.unique(questions)
    if len(distinct) < 2:
        raise UserError(
            f"{len(questions)} cases on {len(distinct)} questions cannot be split into training and held-out ones: "
            "give at least two cases that differ without the cue, or task.test_path"
        )
    count = min(max(1, round(test_fraction * len(distinct))), len(distinct) - 1)
    return questions <= distinct[count - 1]


def chosen(choices: np.ndarray, limit: int) -> np.ndarray:
    """Which cases [n] a limit keeps, from their choice keys (uint64 [n]); a smaller limit keeps a subset."""
    kept = np.zeros(len(choices), bool)
    kept[np.argsort(choices, kind="stable")[:limit]] = True
    return kept
