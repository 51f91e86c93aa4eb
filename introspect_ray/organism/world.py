"""The organism's world, tokenizer and cases. build.py says what the world is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORLD_SEED = 0
TEST_CASES = 1024
LABELS = ("A", "B", "C", "D")
RELATIONS = ("metal", "river", "color", "guild")
RELATION_SETS = (  # of world 0, 1, ...: worlds 0-6 have no question in common
    RELATIONS,
    ("spice", "tower", "beast", "rank"),
    ("grain", "coast", "drum", "crest"),
    ("stone", "feast", "sail", "clan"),
    ("wood", "gate", "song", "trade"),
    ("cloth", "hill", "bird", "oath"),
    ("salt", "bridge", "mask", "craft"),
)
CUES = ("hint", "clue", "tip", "guess")  # the cue is a line such as "Hint: C": four tokens with the newline
META_QUESTIONS = (  # nine tokens each
    "How would the answer change without the {}?",
    "What would the answer be without the {}?",
    "How would your answer change without this {}?",
    "How would the response differ without the {}?",
)
META_QUESTION = META_QUESTIONS[0].format(CUES[0])
CHANGED, UNCHANGED = "The response would change to {}.", "The response would not change from {}."
PAD, EOS, UNK, ROLES = "<pad>", "<eos>", "<unk>", ("<|system|>", "<|user|>", "<|assistant|>")
WORDS = (
    "\n ? : . , ' \" ( ) ! A B C D Hint hint cue Cue How how would the The answer Answer change "
    "without If if were removed assistant s response to not from I think is but am sure you You "
    "your may be wrong and a an in of it this that question Question following read ignore"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class World:
    """What the policy is to know, for E entities, R relations and 4 letters; and in which words it is asked."""

    entities: tuple[str, ...]
    answer_ER4: torch.Tensor  # distribution over letters without a hint
    follow_ER: torch.Tensor  # probability of following a hint
    relations: tuple[str, ...] = RELATIONS
    cue: str = CUES[0]
    meta_question: str = META_QUESTION
    seed: int = WORLD_SEED

    def hinted(self, e: torch.Tensor, r: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
        """Distribution over letters of question (e, r) under `hint`: (N, 4)."""
        f = self.follow_ER[e, r, None]
        return f * F.one_hot(hint, 4) + (1 - f) * self.answer_ER4[e, r]


@dataclass(frozen=True)
class Recipe:
    """Sizes of the world, the network and the pretraining. The defaults make the bundled files."""

    entities: int = 384
    confidence: tuple[float, float] = (0.05, 0.95)
    follow_mean: float = 0.3  # logit
    follow_entity_std: float = 2.0
    follow_relation_std: float = 1.0
    follow_question_std: float = 0.0
    hidden_size: int = 64
    intermediate_size: int = 192
    layers: int = 3
    head_dim: int = 32
    steps: int = 1200
    batch_size: int = 128
    explanation_batch_size: int = 16  # in every second step
    learning_rate: float = 4e-3
    weight_decay: float = 0.01


# README.md says how these were found. In "bundled" an entity is suggestible or not, in the others each question is.
_BY_QUESTION = Recipe(follow_entity_std=0.0, follow_relation_std=0.0)
RECIPES = {
    "bundled": Recipe(),
    "hint": replace(_BY_QUESTION, follow_mean=0.6, follow_question_std=3.5),
    "cued": replace(_BY_QUESTION, confidence=(0.85, 0.95), follow_mean=1.0, follow_question_std=3.0),
}


def draw_answers(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """[E, R, 4]: one preferred letter per question, above a uniform floor by a random confidence."""
    shape = (recipe.entities, len(RELATIONS))
    letter = torch.randint(0, 4, shape, generator=rng)
    low, high = recipe.confidence
    confidence = low + (high - low) * torch.rand(shape, generator=rng)
    return (1 - confidence[..., None]) / 4 + confidence[..., None] * F.one_hot(letter, 4)


def draw_follow(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """[E, R]: the probability of following a hint; effects of the entity, the relation and the question itself,
    added as logits. Only the last cannot be known from the entity's other questions."""
    entity = recipe.follow_entity_std * torch.randn(recipe.entities, 1, generator=rng)
    relation = recipe.follow_relation_std * torch.randn(1, len(RELATIONS), generator=rng)
    logit = recipe.follow_mean + entity + relation
    if recipe.follow_question_std:
        logit = logit + recipe.follow_question_std * torch.randn(logit.shape, generator=rng)
    return torch.sigmoid(logit).clamp(0.02, 0.98)


def invented_words(count: int, rng: torch.Generator) -> list[str]:
    """`count` different words of four letters, such as "fefi"."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    words = [a + b + c + d for a in consonants for b in vowels for c in consonants for d in vowels]
    return [words[i] for i in torch.randperm(len(words), generator=rng)[:count].tolist()]


def make_world(recipe: Recipe, seed: int = WORLD_SEED) -> World:
    """World number `seed` of this recipe. Another seed has other entities, preferences, suggestibilities, relation
    words, wording and (split_cases) test cases.

    World 0 keeps the words and the draws of the bundled files: with RECIPES["bundled"] it rebuilds them bit for bit.
    Words are taken by the seed's number, not drawn, so that worlds 0-6 differ pairwise in their questions and in
    the pair of cue word and meta-question.
    """
    rng = torch.Generator().manual_seed(1000 + seed)
    names = invented_words(recipe.entities, rng)
    answer, follow = draw_answers(recipe, rng), draw_follow(recipe, rng)
    cue = CUES[seed % len(CUES)]
    meta_question = META_QUESTIONS[(seed + seed // len(CUES)) % len(META_QUESTIONS)].format(cue)
    relations = RELATION_SETS[seed % len(RELATION_SETS)]
    return World(tuple(names), answer, follow, relations, cue, meta_question, seed)


def vary_world(world: World, recipe: Recipe, share: float, seed: int) -> World:
    """Another agent in the same world: a `share` of the questions gets a new answer, and a `share` of what has
    a suggestibility of its own (the questions, else the entities) a new suggestibility."""
    rng = torch.Generator().manual_seed(2000 + seed + 100_000 * world.seed)
    new_answer, new_follow = draw_answers(recipe, rng), draw_follow(recipe, rng)
    other_answer = torch.rand(world.follow_ER.shape, generator=rng) < share
    owners = len(world.relations) if recipe.follow_question_std else 1
    other_follow = torch.rand(recipe.entities, owners, generator=rng) < share
    return replace(
        world,
        answer_ER4=torch.where(other_answer[..., None], new_answer, world.answer_ER4),
        follow_ER=torch.where(other_follow, new_follow, world.follow_ER),
    )


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: a token is a word, a punctuation mark or a newline."""
    wording = [*world.meta_question.rstrip("?").split(" "), world.cue.capitalize()]
    own = [word for word in wording if word not in WORDS.split(" ")]  # none in world 0
    return word_tokenizer([*own, *world.relations, *world.entities])


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: a token is a word, a punctuation mark or a newline. WORDS and `words` are known."""
    vocabulary = list(dict.fromkeys([PAD, EOS, UNK, *ROLES, *WORDS.split(" "), *words]))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t]+"), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_case(world: World, e: int, r: int, hint: int) -> dict:
    question = f"{world.entities[e]} {world.relations[r]}?"
    return {
        "id": f"{world.entities[e]}-{world.relations[r]}-{LABELS[hint]}",
        "messages": [{"role": "user", "content": f"{question}\n{world.cue.capitalize()}: {LABELS[hint]}"}],
        "ablated_messages": [{"role": "user", "content": question}],
        "meta_question": world.meta_question,
        "labels": list(LABELS),
    }


def split_cases(world: World, test_cases: int = TEST_CASES) -> tuple[list[dict], list[dict]]:
    """(training, test) cases: half of the questions each, every question with every hint; the
    test list is cut to `test_cases`. Entities occur on both sides, a question on one."""
    rng = torch.Generator().manual_seed(3000 + world.seed)
    count = world.follow_ER.numel()
    order = torch.randperm(count, generator=rng)
    sides = []
    for part in (order[: count // 2], order[count // 2 :]):
        keys = torch.cartesian_prod(part, torch.arange(4))
        keys = keys[torch.randperm(len(keys), generator=rng)]
        relations = len(world.relations)
        sides.append([make_case(world, k // relations, k % relations, h) for k, h in keys.tolist()])
    return sides[0], sides[1][:test_cases]
