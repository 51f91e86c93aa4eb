"""Seeded splits and choices of cases by hash: independent of file order, process and library version."""

from __future__ import annotations

from collections.abc import Sequence

from introspect_ray.draws import bits
from introspect_ray.errors import UserError
from introspect_ray.records import Case


def question_of(case: Case) -> tuple[tuple[str, str], ...]:
    """What two cases share if they ask the same thing under different cues: the turns of x∖C."""
    return tuple((m["role"], m["content"]) for m in case.ablated_messages)


def split(cases: Sequence[Case], test_fraction: float, seed: int) -> tuple[list[Case], list[Case]]:
    """(train, test) by question: round(test_fraction * questions) questions, at least one, are held out.

    File order is kept on both sides. Raises UserError if there are fewer than two questions.
    """
    questions = sorted({question_of(case) for case in cases}, key=lambda q: (bits(seed, "split", q), q))
    if len(questions) < 2:
        raise UserError(
            f"{len(cases)} cases on {len(questions)} questions cannot be split into training and held-out ones: "
            "give at least two cases that differ without the cue, or task.test_path"
        )
    held_out = min(max(1, round(test_fraction * len(questions))), len(questions) - 1)
    chosen = set(questions[:held_out])
    train = [case for case in cases if question_of(case) not in chosen]
    return train, [case for case in cases if question_of(case) in chosen]


def without(train: Sequence[Case], test: Sequence[Case]) -> tuple[list[Case], int]:
    """Training cases whose question is not a held-out one, and how many were dropped."""
    held_out = {question_of(case) for case in test}
    kept = [case for case in train if question_of(case) not in held_out]
    return kept, len(train) - len(kept)


def choose(cases: Sequence[Case], limit: int, seed: int, stream: str) -> list[Case]:
    """`limit` of the cases, seeded; a smaller limit chooses a subset of a larger one. File order is kept."""
    ranked = sorted(cases, key=lambda case: (bits(seed, stream, case.case_id), case.case_id))
    chosen = {case.case_id for case in ranked[:limit]}
    return [case for case in cases if case.case_id in chosen]
