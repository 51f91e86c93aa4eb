"""The kind `jabberwocky` (paper §5.1, E.1): the hint world and, beside it, nonsense questions with an assigned key.

The nonsense words are in the vocabulary, but no prompt of pretraining contains one: M0 cannot know their answers. The
key gives each question a letter, and says whether a hint overrides it. Behaviour on one half of the words, J_train, is
taught as auxiliary data; explanations of nonsense are never trained. The other half is J_test.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from introspect_ray.organism.world import LABELS, World, make_case

WORDS_EACH = 32  # nonsense words of J_train, and of J_test; each with every relation


def make_nonsense(world: World, words_each: int = WORDS_EACH) -> tuple[World, World]:
    """(J_train, J_test): nonsense words, asked about as in `world`.

    The key is certain: one letter, and a hint is followed or not.
    Of each word's questions half follow hints. Words have six letters ("bafkod"), so none is an entity's name.
    """
    rng = torch.Generator().manual_seed(6000 + world.seed)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    shape = (consonants, vowels, consonants, consonants, vowels, consonants)
    drawn: dict[str, None] = {}
    while len(drawn) < 2 * words_each:
        letters = [kind[int(torch.randint(0, len(kind), (1,), generator=rng))] for kind in shape]
        drawn["".join(letters)] = None
    words = list(drawn)
    return _keyed(world, words[:words_each], rng), _keyed(world, words[words_each:], rng)


def _keyed(world: World, words: list[str], rng: torch.Generator) -> World:
    shape = (len(words), len(world.relations))
    key = F.one_hot(torch.randint(0, 4, shape, generator=rng), 4).float()
    follow = torch.rand(shape, generator=rng).argsort(1) % 2
    return replace(world, entities=tuple(words), answer_ER4=key, follow_ER=follow.float())


def with_vocabulary(world: World, *nonsense: World) -> World:
    """The world with the nonsense words behind its entities: the tokenizer knows them, pretraining does not."""
    return replace(world, entities=world.entities + tuple(word for one in nonsense for word in one.entities))


def nonsense_cases(world: World) -> list[dict]:
    """Every question of `world` with every hint, to evaluate on."""
    words, relations = world.follow_ER.shape
    return [make_case(world, w, r, h) for w in range(words) for r in range(relations) for h in range(4)]


def nonsense_chats(world: World) -> list[dict]:
    """Auxiliary data: every question without a hint and with each, answered by the key."""
    words, relations = world.follow_ER.shape
    chats = []
    for w in range(words):
        for r in range(relations):
            key = int(world.answer_ER4[w, r].argmax())
            cases = [make_case(world, w, r, h) for h in range(4)]
            chats.append(_chat(cases[0]["ablated_messages"], key))
            chats += [_chat(case["messages"], h if world.follow_ER[w, r] else key) for h, case in enumerate(cases)]
    return chats


def _chat(messages: list[dict], letter: int) -> dict:
    return {"messages": [*messages, {"role": "assistant", "content": LABELS[letter]}]}
