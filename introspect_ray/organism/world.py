"""The organism's world, tokenizer and cases. build.py says what the world is for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LABELS = ("A", "B", "C", "D")
RELATIONS = ("metal", "river", "color", "guild")
META_QUESTION = "How would the answer change without the hint?"
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
WORLD_SEED = 0
TEST_CASES = 1024


@dataclass(frozen=True)
class World:
    """What the policy is to know, for E entities, R relations and 4 letters."""

    entities: tuple[str, ...]
    answer_ER4: torch.Tensor  # distribution over letters without a hint
    follow_ER: torch.Tensor  # probability of following a hint

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
    hidden_size: int = 64
    intermediate_size: int = 192
    layers: int = 3
    head_dim: int = 32
    steps: int = 1200
    batch_size: int = 128
    explanation_batch_size: int = 16  # in every second step
    learning_rate: float = 4e-3
    weight_decay: float = 0.01


def draw_answers(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """[E, R, 4]: one preferred letter per question, above a uniform floor by a random confidence."""
    shape = (recipe.entities, len(RELATIONS))
    letter = torch.randint(0, 4, shape, generator=rng)
    low, high = recipe.confidence
    confidence = low + (high - low) * torch.rand(shape, generator=rng)
    return (1 - confidence[..., None]) / 4 + confidence[..., None] * F.one_hot(letter, 4)


def draw_follow(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """[E, R]: the probability of following a hint, from an entity and a relation effect, added as logits."""
    entity = recipe.follow_entity_std * torch.randn(recipe.entities, 1, generator=rng)
    relation = recipe.follow_relation_std * torch.randn(1, len(RELATIONS), generator=rng)
    return torch.sigmoid(recipe.follow_mean + entity + relation).clamp(0.02, 0.98)


def make_world(recipe: Recipe, seed: int = WORLD_SEED) -> World:
    rng = torch.Generator().manual_seed(1000 + seed)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    names = [a + b + c + d for a in consonants for b in vowels for c in consonants for d in vowels]
    order = torch.randperm(len(names), generator=rng)[: recipe.entities].tolist()
    answer, follow = draw_answers(recipe, rng), draw_follow(recipe, rng)
    return World(tuple(names[i] for i in order), answer, follow)


def vary_world(world: World, recipe: Recipe, share: float, seed: int) -> World:
    """Another agent in the same world: a `share` of the questions gets a new answer and
    a `share` of the entities a new suggestibility."""
    rng = torch.Generator().manual_seed(2000 + seed)
    new_answer, new_follow = draw_answers(recipe, rng), draw_follow(recipe, rng)
    other_answer = torch.rand(world.follow_ER.shape, generator=rng) < share
    other_follow = torch.rand(recipe.entities, 1, generator=rng) < share
    return replace(
        world,
        answer_ER4=torch.where(other_answer[..., None], new_answer, world.answer_ER4),
        follow_ER=torch.where(other_follow, new_follow, world.follow_ER),
    )


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    return word_tokenizer([*RELATIONS, *world.entities])


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
    question = f"{world.entities[e]} {RELATIONS[r]}?"
    return {
        "id": f"{world.entities[e]}-{RELATIONS[r]}-{LABELS[hint]}",
        "messages": [{"role": "user", "content": f"{question}\nHint: {LABELS[hint]}"}],
        "ablated_messages": [{"role": "user", "content": question}],
        "meta_question": META_QUESTION,
        "labels": list(LABELS),
    }


def split_cases(world: World, test_cases: int = TEST_CASES) -> tuple[list[dict], list[dict]]:
    """(training, test) cases: half of the questions each, every question with every hint; the
    test list is cut to `test_cases`. Entities occur on both sides, a question on one."""
    rng = torch.Generator().manual_seed(3000)
    count = world.follow_ER.numel()
    order = torch.randperm(count, generator=rng)
    sides = []
    for part in (order[: count // 2], order[count // 2 :]):
        keys = torch.cartesian_prod(part, torch.arange(4))
        keys = keys[torch.randperm(len(keys), generator=rng)]
        relations = len(RELATIONS)
        sides.append([make_case(world, k // relations, k % relations, h) for k, h in keys.tolist()])
    return sides[0], sides[1][:test_cases]
