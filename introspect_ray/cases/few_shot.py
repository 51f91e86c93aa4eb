"""Few-shot prompting of an untrained policy: explained training cases before q (paper fig. 11). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from introspect_ray.cases.explanations import render
from introspect_ray.cases.tokenize import with_meta_question
from introspect_ray.cases.wording import complete
from introspect_ray.errors import UserError
from introspect_ray.records import Case, Explanation, Message
from introspect_ray.rng import bits


def few_shot_messages(case: Case, examples: Sequence[tuple[Case, Explanation]]) -> tuple[Message, ...]:
    """The chat of q with the examples in front: each one's x with its meta-question, and its explanation as the reply.

    A chat has one system turn at most, at its start: that of `case`. A system turn of an example stands before the
    text of its first user turn, with an empty line between them. Raises ValueError for an example with the x∖C of
    `case`, which would give its answer away.
    """
    asked = with_meta_question(case)
    start = 1 if asked[0]["role"] == "system" else 0
    turns = list(asked[:start])
    for example, explanation in examples:
        if example.ablated_messages == case.ablated_messages:
            raise ValueError(f"case {case.case_id!r}: the example {example.case_id!r} asks the same question")
        turns.extend(_without_system(with_meta_question(example)))
        turns.append({"role": "assistant", "content": render(explanation, complete(example.templates))})
    return (*turns, *asked[start:])


def shots_of(case_id: str, ids: Sequence[str], k: int, seed: int) -> list[str]:
    """The ids of the k examples of a case, drawn from `ids` by (seed, case id), each once and never the case itself.

    Each case has draws of its own, so its examples do not depend on which other cases are explained. `ids`: those of
    the training cases, which load_cases keeps apart from the questions of held-out cases. Raises UserError if there
    are too few.
    """
    if k > len(ids) or (k == len(ids) and case_id in ids):
        raise UserError(f"task.shots={k}, but there are only {len(ids)} training cases to draw from: lower task.shots")
    found: dict[str, None] = {}
    for at in _draws(case_id, len(ids), seed):
        if len(found) == k:
            break
        if ids[at] != case_id:
            found[ids[at]] = None
    return list(found)


def _draws(case_id: str, count: int, seed: int) -> Iterator[int]:
    """Uniform numbers below `count`, without end."""
    draw = 0
    while True:
        yield bits(seed, "shot", case_id, draw) % count
        draw += 1


def _without_system(turns: Sequence[Message]) -> list[Message]:
    if turns[0]["role"] != "system":
        return list(turns)
    system, first, *rest = turns
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]
