"""Build the bundled model organism: a small policy, its tokenizer and its cases.

    python -m introspect_ray.organism.build --seed 0 --out DIR

The world. There are ENTITIES x RELATIONS questions ("fefi metal?"), each with a
distribution over four letters that is stored in the weights alone. A prompt may
end in a cue, "Hint: C". Under a hint the answer is a mixture: with probability
`follow[entity, relation]` the hinted letter, else the question's own
distribution. So y(x) depends on two pieces of private knowledge (how sure, how
suggestible), and the counterfactual y(x without cue) on one of them.

Why this shows introspective coupling: explaining a held-out question needs the
same stored knowledge as answering it, so a weight change that flips a behaviour
can flip the explanation with it. The confidences reach down to near ties:
explanations of the current behaviour (Self) and of M0's (Orig) can only differ
where behaviours drift under a finite KL. The question about the cue occurs in
pretraining with uniformly random explanations: the policy knows the form of an
explanation and nothing of its truth.

Pretraining minimises the cross-entropy to the world's distribution itself
(soft targets), not to samples from it, so that even near ties are learned in
minutes. All randomness has explicit seeds; on one machine with one thread, the
same seed gives the same bytes.
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
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from introspect_ray.organism.world import (
    CHANGED,
    EOS,
    LABELS,
    UNCHANGED,
    Recipe,
    World,
    make_case,
    make_tokenizer,
    make_world,
    split_cases,
    vary_world,
)

DEFAULT = Recipe()


@dataclass(frozen=True)
class Encoded:
    """Token ids of every question, S tokens each; all rows of one tensor have the same length."""

    ablated_ERS: torch.Tensor
    hinted_ER4S: torch.Tensor
    meta_ER4S: torch.Tensor
    explanation_8S: torch.Tensor  # changed to A..D, not changed from A..D; padded
    label_ids: torch.Tensor  # [4]


def encode(world: World, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    entities, relations = world.follow_ER.shape
    cases = [make_case(world, e, r, h) for e in range(entities) for r in range(relations) for h in range(4)]

    def ids(chats: list[list[dict]]) -> torch.Tensor:
        texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        return torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])

    meta = [[{"role": "user", "content": c["messages"][0]["content"] + "\n" + c["meta_question"]}] for c in cases]
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
    """Cross-entropy to explanations drawn uniformly, whatever the policy does."""
    drawn = data.explanation_8S[torch.randint(0, 8, (len(meta_NS),), generator=rng)]
    logprobs = _tail_logprobs(policy, torch.cat([meta_NS, drawn[:, :-1]], 1), drawn.shape[1])
    pad: int = policy.config.pad_token_id  # make_policy sets it
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

    def draw(n: int) -> tuple[torch.Tensor, ...]:
        """(entities, relations, hints), [n] each."""
        return tuple(torch.randint(0, k, (n,), generator=rng) for k in (entities, relations, 4))

    start = time.monotonic()
    for step in range(recipe.steps):
        decay = 0.51 + 0.49 * math.cos(math.pi * step / recipe.steps)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 100) * decay
        e, r, h = draw(recipe.batch_size)
        loss = answer_loss(policy, data.hinted_ER4S[e, r, h], world.hinted(e, r, h), data, rng)
        loss = loss + answer_loss(policy, data.ablated_ERS[e, r], world.answer_ER4[e, r], data, rng)
        if step % 2 == 0:
            loss = loss + explanation_loss(policy, data.meta_ER4S[draw(recipe.explanation_batch_size)], data, rng)
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


def build(out: Path, seed: int = 0, recipe: Recipe = DEFAULT, second: bool = True) -> None:
    """Write policy/, second_policy/, train.jsonl and test.jsonl into `out`."""
    world = make_world(recipe)
    out.mkdir(parents=True, exist_ok=True)
    for name, cases in zip(("train", "test"), split_cases(world), strict=True):
        lines = "".join(json.dumps(case) + "\n" for case in cases)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    build_policy(world, recipe, seed, out / "policy")
    if second:
        other = vary_world(world, recipe, share=0.5, seed=0)
        build_policy(other, recipe, seed + 1, out / "second_policy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of pretraining; the world stays the same")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=DEFAULT.steps, help="pretraining steps")
    parser.add_argument("--no-second", action="store_true", help="only the main policy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    build(args.out, args.seed, replace(DEFAULT, steps=args.steps), second=not args.no_second)


if __name__ == "__main__":
    main()
