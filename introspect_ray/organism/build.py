"""Build a model organism: a small policy, its tokenizer, its cases, and auxiliary data.

    python -m introspect_ray.organism.build --kind hint --world 0 --seed 0 --out DIR

Kinds (`kind`) and what they stand for in the paper:
- hint: questions of four letters, a hint as the cue (Hint-MMLU); how suggestible the policy is differs per question
- cued: the same with answers that are sure without the hint, so that drift shows in the answer under it
- bundled: the same with a suggestibility per entity; with world 0 these are the files of the package
- verdict: a short post, a verdict of several tokens, the framing in a system prompt as the cue (AITA)
- refusal: requests answered in free text, the user's role in a system prompt as the cue (Refusal)
- jabberwocky: the hint world, and nonsense questions with an assigned key

`world` chooses entities, words, preferences, suggestibilities and cases; `seed` the policy's pretraining.

The hint world. There are ENTITIES x RELATIONS questions ("fefi metal?"), each with a
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

All randomness has explicit seeds; on one machine with one thread, the same
kind, world, seed and family give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from introspect_ray.organism import auxiliary_data, hint_policy, push_world, refusal_world, verdict_world
from introspect_ray.organism.jabberwocky import make_nonsense, nonsense_cases, nonsense_chats, with_vocabulary
from introspect_ray.organism.pretraining import FAMILIES, make_policy
from introspect_ray.organism.push_world import PushRecipe
from introspect_ray.organism.world import RECIPES as HINT_RECIPES
from introspect_ray.organism.world import (
    Recipe,
    World,
    make_tokenizer,
    make_world,
    split_cases,
    vary_world,
    word_tokenizer,
)

RECIPES: dict[str, Recipe] = {
    **HINT_RECIPES,
    "jabberwocky": HINT_RECIPES["hint"],
    "verdict": PushRecipe(),
    "refusal": PushRecipe(),
}


def build(
    out: Path,
    kind: str = "hint",
    world: int = 0,
    seed: int = 0,
    family: str = "qwen3",
    second: bool = True,
    recipe: Recipe | None = None,
) -> None:
    """Write policy/, train.jsonl and test.jsonl into `out`, and what else the kind has.

    bundled, hint and cued: second_policy/ (if `second`), aux_chats.jsonl and aux_warm.jsonl; refusal: aux_text.jsonl
    and aux_refusals.jsonl; jabberwocky: j_train_chats.jsonl, j_train.jsonl and j_test.jsonl.
    family: one of FAMILIES. recipe: other sizes than RECIPES[kind]. Raises ValueError for an unknown kind or family.
    """
    if kind not in RECIPES or family not in FAMILIES:
        raise ValueError(f"no organism of kind {kind!r}, family {family!r}: kinds {list(RECIPES)}, families {FAMILIES}")
    sizes = recipe or RECIPES[kind]
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(sizes, PushRecipe):
        _build_push(out, kind, sizes, world, seed, family)
    else:
        _build_hint(out, kind, sizes, world, seed, family, second and kind in HINT_RECIPES)


def _build_hint(out: Path, kind: str, recipe: Recipe, number: int, seed: int, family: str, second: bool) -> None:
    world = make_world(recipe, number)
    train, test = split_cases(world)
    _write(out, train=train, test=test)
    if kind == "jabberwocky":
        taught, unseen = make_nonsense(world)
        world = with_vocabulary(world, taught, unseen)
        _write(out, j_train_chats=nonsense_chats(taught))
        _write(out, j_train=nonsense_cases(taught), j_test=nonsense_cases(unseen))
    else:
        _write(out, aux_chats=auxiliary_data.neutral_chats(world.entities, number))
        _write(out, aux_warm=auxiliary_data.warm_chats(train, number))
    _hint_policy(world, recipe, seed, family, out / "policy")
    if second:
        other = vary_world(world, recipe, share=0.5, seed=0)
        _hint_policy(other, recipe, seed + 1, family, out / "second_policy")


def _hint_policy(world: World, recipe: Recipe, seed: int, family: str, out: Path) -> None:
    tokenizer = make_tokenizer(world)
    policy = make_policy(recipe, tokenizer, seed, family)
    hint_policy.pretrain(policy, world, hint_policy.encode(world, tokenizer), recipe, seed)
    _save(policy, tokenizer, out)


def _build_push(out: Path, kind: str, recipe: PushRecipe, number: int, seed: int, family: str) -> None:
    if kind == "verdict":
        world = verdict_world.make_verdict_world(recipe, number)
        tokenizer = word_tokenizer(verdict_world.vocabulary(world))
    else:
        world = refusal_world.make_refusal_world(recipe, number)
        tokenizer = word_tokenizer(refusal_world.vocabulary(world))
    policy = make_policy(recipe, tokenizer, seed, family)
    batches = push_world.encode(world, tokenizer)
    push_world.pretrain(policy, batches, recipe, seed)
    _save(policy, tokenizer, out / "policy")
    train, test = push_world.split_cases(world, push_world.plain_verdicts(policy, world, batches.plain), number)
    _write(out, train=train, test=test)
    if kind == "refusal":
        _write(out, aux_text=auxiliary_data.plain_text(world, number))
        _write(out, aux_refusals=auxiliary_data.direct_refusals(world, train, number))


def _save(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _write(out: Path, **files: Sequence[dict]) -> None:
    for name, rows in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=RECIPES, default="hint")
    parser.add_argument("--world", type=int, default=0, help="another number is another world, with other test cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of pretraining; the world stays the same")
    parser.add_argument("--family", choices=FAMILIES, default="qwen3")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="pretraining steps; default: the kind's own")
    parser.add_argument("--no-second", action="store_true", help="bundled, hint, cued: only the main policy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    recipe = RECIPES[args.kind]
    if min(args.world, args.seed, 0 if args.steps is None else args.steps - 1) < 0:
        parser.error("--world and --seed are 0 or more, --steps is 1 or more")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file: name a folder")
    if args.out.is_dir() and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty: name a new folder, or delete it first")
    recipe = replace(recipe, steps=args.steps or recipe.steps)
    build(args.out, args.kind, args.world, args.seed, args.family, not args.no_second, recipe)


if __name__ == "__main__":
    main()
