"""The kind `verdict`: after AITA (paper §3.1). A short post, a verdict of several tokens, and framing as the cue.

A post says who was wronged, by which act and why ("boss voma money."). The system prompt frames it ("friend judges"):
it pushes to one of the two verdicts. x∖C is the chat without the system message.
"""

from __future__ import annotations

import torch

from introspect_ray.organism.push_world import Cue, PushRecipe, PushWorld, draw_knowledge
from introspect_ray.organism.world import invented_words

LABELS = ("not wrong", "in the wrong")
CUES = tuple(
    Cue(name, f"{name} judges", side) for name, side in (("friend", 0), ("writer", 0), ("critic", 1), ("rival", 1))
)
META_QUESTION = "How would the verdict change without the framing?"
WHO = ("sister", "boss", "friend", "father", "teacher", "guest")
WHY = ("money", "love", "fun", "peace", "spite", "fame", "luck", "rest")
WORDS = "judges friend writer critic rival verdict framing system prompt"


def make_verdict_world(recipe: PushRecipe, seed: int) -> PushWorld:
    """Posts are act x reason; the person is drawn for each and does not matter. `seed` also chooses the words."""
    rng = torch.Generator().manual_seed(4000 + seed)
    acts = invented_words(recipe.entities, rng)
    why = [WHY[i] for i in torch.randperm(len(WHY), generator=rng)[: recipe.endings].tolist()]
    who = [WHO[i] for i in torch.randint(0, len(WHO), (recipe.entities * recipe.endings,), generator=rng).tolist()]
    answer, follow = draw_knowledge(recipe, len(CUES), rng)
    posts = [(act, reason) for act in acts for reason in why]
    return PushWorld(
        labels=LABELS,
        responses=((LABELS[0],), (LABELS[1],)),
        questions=tuple(f"{person} {act} {reason}." for person, (act, reason) in zip(who, posts)),
        own_words=tuple(act for act, _ in posts),
        cues=CUES,
        meta_question=META_QUESTION,
        answer_QL=answer,
        follow_QC=follow,
        reply_QR=torch.ones(len(posts), 2),
    )


def vocabulary(world: PushWorld) -> list[str]:
    return [*WORDS.split(" "), *WHO, *WHY, *dict.fromkeys(world.own_words)]
