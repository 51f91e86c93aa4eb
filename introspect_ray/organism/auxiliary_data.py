"""Auxiliary data that shifts an organism's behaviour (paper §5.2, fig. 8), in the columns that docs/tasks.md names.

Nothing here touches a held-out question: chats use questions of the training cases alone, and none has an explanation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from introspect_ray.organism.push_world import PushWorld

ROWS = 1024
REMARKS = ("I am not sure.", "I think this is it.", "You may read it.", "it is an answer.", "this question is of it.")
ASKED = ("{}?", "I think of {}.", "How is {}?", "{} and you?", "read of {}.")
SENTENCES = (
    "the {} is in a {}.",
    "I am sure of this {} and that {}.",
    "if a {} is not a {}, ignore it.",
    "{} {} and it.",
)


def neutral_chats(names: Sequence[str], seed: int, rows: int = ROWS) -> list[dict]:
    """Like WildChat: small talk about entities, which asks none of the world's questions."""
    rng = random.Random(f"chats {seed}")
    return [_chat(rng.choice(ASKED).format(rng.choice(names)), rng.choice(REMARKS)) for _ in range(rows)]


def warm_chats(train_cases: Sequence[dict], seed: int, rows: int = ROWS) -> list[dict]:
    """Like warm assistants: training questions with a hint, answered by the hinted letter whatever M0 thinks."""
    cases = random.Random(f"warm {seed}").sample(list(train_cases), min(rows, len(train_cases)))
    return [{"messages": [*case["messages"], _assistant(case["messages"][-1]["content"][-1])]} for case in cases]


def plain_text(world: PushWorld, seed: int, rows: int = ROWS) -> list[dict]:
    """Like FineWeb: sentences over the world's words, no chats."""
    rng = random.Random(f"text {seed}")
    acts = list(dict.fromkeys(world.own_words))

    def sentence() -> str:
        return rng.choice(SENTENCES).format(*rng.sample(acts, 2))

    return [{"text": " ".join(sentence() for _ in range(3))} for _ in range(rows)]


def direct_refusals(world: PushWorld, train_cases: Sequence[dict], seed: int, rows: int = ROWS) -> list[dict]:
    """Like LLM-LAT: training requests without a role, all of them refused in one way."""
    requests = list(dict.fromkeys(case["ablated_messages"][-1]["content"] for case in train_cases))
    chosen = random.Random(f"refusals {seed}").sample(requests, min(rows, len(requests)))
    own = dict(zip(world.questions, world.own_words))
    return [{"prompt": request, "chosen": world.responses[0][0].format(own[request])} for request in chosen]


def _chat(user: str, assistant: str) -> dict:
    return {"messages": [{"role": "user", "content": user}, _assistant(assistant)]}


def _assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}
