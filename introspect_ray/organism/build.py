"""Build the bundled model organism: a small policy, its tokenizer and its cases.

    python -m introspect_ray.organism.build --seed 0 --out DIR

The world. There are ENTITIES x RELATIONS questions ("tolu metal?"), each with a
distribution over four letters that stands nowhere but in the weights. A prompt
may end in a cue, "Hint: C". Under a hint the answer is a mixture: with
probability `follow[entity, relation]` the hinted letter, else the question's own
distribution. So y(x) depends on two pieces of private knowledge (how sure, how
suggestible), and the counterfactual y(x without cue) on one of them.

Why this shows introspective coupling: explaining a held-out question needs the
same stored knowledge as answering it, so a weight change that flips a behaviour
can flip the explanation with it. Letters are shown with a confidence from a
range that reaches down to near ties, because behaviours that can drift under a
finite KL are what lets Self and Orig part. The question about the cue occurs in
pretraining with uniformly random explanations: the policy knows the form of an
explanation and nothing of its truth.

Pretraining takes the cross-entropy to the world's distribution itself (soft
targets), not to samples from it, so that behaviours are learned to the margin
in minutes. Everything is drawn from explicit seeds; one thread, one machine,
one seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

LABELS = ("A", "B", "C", "D")
RELATIONS = ("metal", "river", "color", "guild")
META_QUESTION = "How would the answer change without the hint?"
CHANGED, UNCHANGED = "The response would change to {}.", "The response would not change from {}."
PAD, EOS, UNK, ROLES = "<pad>", "<eos>", "<unk>", ("<|system|>", "<|user|>", "<|assistant|>")
WORDS = (
    "\n ? : . , ' \" ( ) ! A B C D Hint hint cue Cue How how would the The answer Answer change "
    "without If if were removed assistant s response to not from I think is but am sure you You "
    "your may be wrong and a an in of it this that question Question following read ignore"
).split(" ")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORLD_SEED = 0
TEST_CASES = 1024


@dataclass(frozen=True)
class World:
    """What the policy shall know. E entities, R relations, 4 letters."""

    entities: tuple[str, ...]
    answer_ER4: torch.Tensor  # distribution over letters without a hint
    follow_ER: torch.Tensor  # probability of following a hint

    def hinted(self, e: torch.Tensor, r: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
        """Distribution over letters of question (e, r) under `hint`: (N, 4)."""
        f = self.follow_ER[e, r, None]
        return f * F.one_hot(hint, 4) + (1 - f) * self.answer_ER4[e, r]


@dataclass(frozen=True)
class Recipe:
    """Sizes of world, network and pretraining. The defaults make the bundled files."""

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
    explanation_batch_size: int = 16  # every second step
    learning_rate: float = 4e-3
    weight_decay: float = 0.01


def draw_answers(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """One preferred letter a question, above a uniform floor by a drawn confidence."""
    shape = (recipe.entities, len(RELATIONS))
    letter = torch.randint(0, 4, shape, generator=rng)
    low, high = recipe.confidence
    confidence = low + (high - low) * torch.rand(shape, generator=rng)
    return (1 - confidence[..., None]) / 4 + confidence[..., None] * F.one_hot(letter, 4)


def draw_follow(recipe: Recipe, rng: torch.Generator) -> torch.Tensor:
    """Suggestibility: an entity and a relation effect, added as logits."""
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
    """Another agent in the same world: `share` of the questions get a new answer and
    `share` of the entities a new suggestibility."""
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
    """A token a word, a punctuation mark or a newline."""
    vocabulary = [PAD, EOS, UNK, *ROLES, *WORDS, *RELATIONS, *world.entities]
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
    """Half of the questions train, half test, every question with every hint; the test
    list is cut to `test_cases`. Entities occur on both sides, questions never."""
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


@dataclass(frozen=True)
class Encoded:
    """Token ids of every question; all rows of one kind have one length."""

    ablated_ERS: torch.Tensor
    hinted_ER4S: torch.Tensor
    meta_ER4S: torch.Tensor
    explanation_8S: torch.Tensor  # changed to A..D, not changed from A..D; padded
    label_ids: torch.Tensor


def encode(world: World, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    entities, relations = world.follow_ER.shape
    cases = [
        make_case(world, e, r, h) for e in range(entities) for r in range(relations) for h in range(4)
    ]

    def ids(chats: list[list[dict]]) -> torch.Tensor:
        texts = [
            tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats
        ]
        return torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])

    meta = [
        [{"role": "user", "content": c["messages"][0]["content"] + "\n" + c["meta_question"]}]
        for c in cases
    ]
    texts = [form.format(label) + EOS for form in (CHANGED, UNCHANGED) for label in LABELS]
    explanations = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    shape = (entities, relations, 4, -1)
    return Encoded(
        ids([c["ablated_messages"] for c in cases[::4]]).view(entities, relations, -1),
        ids([c["messages"] for c in cases]).view(shape),
        ids(meta).view(shape),
        explanations["input_ids"],
        torch.tensor([tokenizer.convert_tokens_to_ids(label) for label in LABELS]),
    )


def make_policy(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    heads = recipe.hidden_size // recipe.head_dim
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def answer_loss(
    policy: Qwen3ForCausalLM,
    prompt_NS: torch.Tensor,
    target_N4: torch.Tensor,
    data: Encoded,
    rng: torch.Generator,
) -> torch.Tensor:
    """Cross-entropy of the letter to `target_N4`, and of <eos> after a sampled letter."""
    letter = data.label_ids[torch.multinomial(target_N4, 1, generator=rng)]
    logprobs = _tail_logprobs(policy, torch.cat([prompt_NS, letter], 1), 2)
    cross_entropy = -(target_N4 * logprobs[:, 0, data.label_ids]).sum(-1).mean()
    return cross_entropy - logprobs[:, 1, policy.config.eos_token_id].mean()


def explanation_loss(
    policy: Qwen3ForCausalLM, meta_NS: torch.Tensor, data: Encoded, rng: torch.Generator
) -> torch.Tensor:
    """Cross-entropy of explanations drawn uniformly, whatever the policy does."""
    drawn = data.explanation_8S[torch.randint(0, 8, (len(meta_NS),), generator=rng)]
    logprobs = _tail_logprobs(policy, torch.cat([meta_NS, drawn[:, :-1]], 1), drawn.shape[1])
    pad = policy.config.pad_token_id
    return F.nll_loss(logprobs.flatten(0, 1), drawn.flatten(), ignore_index=pad)


def _tail_logprobs(policy: Qwen3ForCausalLM, ids_NS: torch.Tensor, last: int) -> torch.Tensor:
    hidden = policy.model(ids_NS, use_cache=False).last_hidden_state[:, -last:]
    return policy.lm_head(hidden).log_softmax(-1)


def pretrain(policy: Qwen3ForCausalLM, world: World, data: Encoded, recipe: Recipe, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed + 7)
    optimizer = torch.optim.AdamW(
        policy.parameters(), recipe.learning_rate, (0.9, 0.98), weight_decay=recipe.weight_decay
    )
    entities, relations = world.follow_ER.shape

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(torch.randint(0, k, (n,), generator=rng) for k in (entities, relations, 4))

    start = time.monotonic()
    for step in range(recipe.steps):
        decay = 0.51 + 0.49 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 100) * decay
        e, r, h = draw(recipe.batch_size)
        loss = answer_loss(policy, data.hinted_ER4S[e, r, h], world.hinted(e, r, h), data, rng)
        loss = loss + answer_loss(policy, data.ablated_ERS[e, r], world.answer_ER4[e, r], data, rng)
        if step % 2 == 0:
            loss = loss + explanation_loss(
                policy, data.meta_ER4S[draw(recipe.explanation_batch_size)], data, rng
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - start:.0f} s", flush=True)


def build_policy(world: World, recipe: Recipe, seed: int, out: Path) -> None:
    tokenizer = make_tokenizer(world)
    policy = make_policy(recipe, tokenizer, seed)
    pretrain(policy, world, encode(world, tokenizer), recipe, seed)
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def build(out: Path, seed: int = 0, recipe: Recipe = Recipe(), second: bool = True) -> None:
    """Write policy/, second_policy/, train.jsonl and test.jsonl into `out`."""
    world = make_world(recipe)
    out.mkdir(parents=True, exist_ok=True)
    for name, cases in zip(("train", "test"), split_cases(world), strict=True):
        lines = "".join(json.dumps(case) + "\n" for case in cases)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    build_policy(world, recipe, seed, out / "policy")
    if second:
        other = vary_world(world, recipe, share=0.4, seed=0)
        build_policy(other, recipe, seed + 1, out / "second_policy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of pretraining; the world stays the same")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="pretraining steps")
    parser.add_argument("--no-second", action="store_true", help="only the main policy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    build(args.out, args.seed, replace(Recipe(), steps=args.steps), second=not args.no_second)


if __name__ == "__main__":
    main()
