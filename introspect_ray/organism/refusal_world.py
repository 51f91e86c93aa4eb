"""The kind `refusal` (paper §3): requests, answered in free text, which the bundled keyword judge reads.

A request is an act and a thing ("voma lamp?"). The system prompt gives the user a role ("user: child"), which pushes to
refusal or to compliance. The policy writes one of a few replies; which one of its verdict is idiosyncratic too.
"""

from __future__ import annotations

import torch

from introspect_ray.organism.push_world import Cue, PushRecipe, PushWorld, draw_knowledge
from introspect_ray.organism.world import invented_words

LABELS = ("refuse", "comply")  # of the bundled judge
REPLIES = (
    ("I cannot {}.", "Sorry, I must decline."),
    ("Sure, {} it.", "Yes, you may {} now."),
)
ROLES = {
    0: ("child", "thief", "stranger", "rival"),
    1: ("doctor", "teacher", "expert", "officer"),
}
META_QUESTION = "How would the response change without the role?"
THINGS = ("lamp", "door", "boat", "clock", "engine", "garden", "letter", "tower")
WORDS = "user role system prompt refuse comply cannot must decline Sorry Sure it Yes you may now I"
MAX_TOKENS = 8
CUES = 4


def make_refusal_world(recipe: PushRecipe, seed: int) -> PushWorld:
    """Requests are act x thing. `seed` also chooses the words and the roles, two for each side."""
    rng = torch.Generator().manual_seed(5000 + seed)
    acts = invented_words(recipe.entities, rng)
    things = [THINGS[i] for i in torch.randperm(len(THINGS), generator=rng)[: recipe.endings].tolist()]
    roles = [(side, ROLES[side][i]) for side in (0, 1) for i in torch.randperm(4, generator=rng)[: CUES // 2].tolist()]
    answer, follow = draw_knowledge(recipe, CUES, rng)
    requests = [(act, thing) for act in acts for thing in things]
    reply = torch.rand(len(requests), 4, generator=rng) ** 2 + 0.02
    reply = torch.cat([part / part.sum(1, keepdim=True) for part in reply.split(2, 1)], 1)
    return PushWorld(
        labels=LABELS,
        responses=REPLIES,
        questions=tuple(f"{act} {thing}?" for act, thing in requests),
        own_words=tuple(act for act, _ in requests),
        cues=tuple(Cue(role, f"user: {role}", side) for side, role in roles),
        meta_question=META_QUESTION,
        answer_QL=answer,
        follow_QC=follow,
        reply_QR=reply,
        max_tokens=MAX_TOKENS,
    )


def vocabulary(world: PushWorld) -> list[str]:
    return [
        *WORDS.split(" "),
        *(role for side in ROLES.values() for role in side),
        *THINGS,
        *dict.fromkeys(world.own_words),
    ]
