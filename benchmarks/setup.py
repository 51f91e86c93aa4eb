"""The set-up of a training before its first step: with M0's labels and its reference made apart, over made in one pass.

Both sides are the real set-up (`runs.setup.set_up`) on a Ray of their own, from a checked config to engines, labels,
explanations and reference, with SmolLM2-135M on 500 MMLU cases to train on and 32 held-out ones (--held-out). Apart, as
it was: the engine labels all cases, and a task computes the reference meanwhile. In one pass: the engine labels the
held-out cases, and labels and reference of the others are read off one pass, which trainer and engine's cores share.
The references must be the same bytes, and the labels the same but for near-ties (1 %). Explanations and the start of
the engine are in both, so the ratio falls with the share of held-out cases.

`ratio_plain` is a plain transformers pass that makes the labels of the training cases alone (prompts of similar length
in batches of four, the fastest in benchmarks/rollouts.py), over our pass that makes labels and reference: each in a
process of its own with two threads, without start-up. Its goal is 1.5.

The environment variable MMLU names a file of cais/mmlu rows (JSONL); without it the 32 questions of this folder are
asked with their choices in 18 orders.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from benchmarks.common import MMLU, Clock, child, parser, policy_folder, report, run_main
from benchmarks.rollouts import BATCH, generate_pairs, start_model
from introspect_ray.config import RunConfig, load_config
from introspect_ray.runs.preflight import prepare

NAME, GOAL, PLAIN_GOAL = "setup", ">= 1.6", 1.5
WAYS, ALONE = ("apart", "once"), ("plain", "pass")
TRAIN, ORDERS, THREADS, TOLERANCE, NEAR_TIES = 500, 18, 2, 2e-3, 0.01


def mmlu_file(folder: str) -> str:
    """A JSONL file of MMLU questions, enough for the training and the held-out cases."""
    if given := os.environ.get("MMLU"):
        return given
    rows, path, rng = (
        [json.loads(line) for line in MMLU.read_text().splitlines()],
        Path(folder, "mmlu.jsonl"),
        Random(0),
    )
    with path.open("w") as out:
        for row in rows:
            for order in rng.sample(list(permutations(range(4))), ORDERS):
                letter = "ABCD"[order.index("ABCD".index(row["answer"]))]
                out.write(json.dumps({**row, "choices": [row["choices"][i] for i in order], "answer": letter}) + "\n")
    return str(path)


def config(args: argparse.Namespace, folder: str) -> RunConfig:
    small, policy = args.small, policy_folder(args.small)
    flat: dict[str, Any] = {"output_dir": f"{folder}/out", "policy": policy, "tracking.backend": "none"}
    flat |= {"task.train_cases": 96 if small else TRAIN, "task.test_cases": args.held_out}
    if not small:
        flat |= {"task.name": "hint_mmlu", "task.path": mmlu_file(folder), "task.answer_prefix": "("}
        if "MMLU" in os.environ:
            flat |= {"task.max_tokens": 250}
        else:
            flat |= {"task.test_fraction": args.held_out / (args.held_out + TRAIN)}
    return load_config(None, flat)


def set_up_once(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a set-up, M0's answers to the training cases, and a checksum of the reference's files."""
    import ray

    from introspect_ray.runs import setup
    from introspect_ray.runs.cluster import connect

    with tempfile.TemporaryDirectory() as folder:
        cfg = config(args, folder)
        prepared = prepare(cfg)
        connect(cfg)
        try:
            apart = mock.patch.object(setup, "start_pass", return_value=None)
            clock = Clock()
            with apart if way == "apart" else nullcontext(), clock:
                made = setup.set_up(cfg, prepared)
            m0 = ray.get(made.m0)
            answers = [[pair.cued, pair.ablated] for pair in map(m0.__getitem__, prepared.train.case_ids)]
            digest = hashlib.blake2b()
            for file in sorted(Path(made.reference_path or "").rglob("*")):
                digest.update(file.read_bytes() if file.is_file() else b"")
        finally:
            ray.shutdown()
    cases = {"train": len(prepared.train), "test": len(prepared.test)}
    return {
        "wall_s": clock.wall,
        "cases": cases,
        "seconds": made.seconds,
        "answers": answers,
        "files": digest.hexdigest(),
    }


def label_alone(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of labelling the training cases in this process, and their label logprobs."""
    import torch

    from introspect_ray.training.behavior_pass import BehaviorPass

    with tempfile.TemporaryDirectory() as folder:
        cfg = config(args, folder)
        cases, policy = list(prepare(cfg).train), cfg.policy
        torch.set_num_threads(THREADS)
        clock = Clock()
        if side == "plain":
            model = start_model(policy, THREADS)
            generate_pairs(model, 1, cases[:1])
            with clock:
                logprobs = generate_pairs(model, BATCH["organism" if args.small else "smollm2"], cases)
        else:
            work = BehaviorPass(policy, cases, folder)
            work.load()
            with clock:
                for part in work.missing():
                    work.make(part)
                pairs = list(work.pairs())
                work.reference({pair.case_id: pair for pair in pairs})
            logprobs = [[*pair.cued_logprobs, *pair.ablated_logprobs] for pair in pairs]
    return {"wall_s": clock.wall, "logprobs": logprobs}


def check(runs: dict[str, Any]) -> float:
    """The share of answers that both set-ups agree in. Exits where the sides differ."""
    if runs["apart"]["files"] != runs["once"]["files"]:
        sys.exit("the references of the two set-ups differ")
    both = [
        a == b for pair in zip(runs["apart"]["answers"], runs["once"]["answers"], strict=True) for a, b in zip(*pair)
    ]
    same = sum(both) / len(both)
    flat = [[value for one in runs[side]["logprobs"] for value in one] for side in ALONE]
    gap = max(abs(a - b) for a, b in zip(*flat, strict=True))
    if same < 1 - NEAR_TIES or gap > TOLERANCE:
        sys.exit(f"labels differ: {same:.2%} are the same, logprobs differ by up to {gap:.1e} nats")
    return same


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--held-out", type=int, default=32, help="held-out cases (default 32)")
    made.add_argument("--side", choices=(*WAYS, *ALONE), help="measure this side in this process, and stop")
    return made.parse_args()


def main() -> None:
    args = arguments()
    if args.side:
        measure = set_up_once if args.side in WAYS else label_alone
        return print(json.dumps(measure(args.side, args)))
    runs, flags = {}, ["--held-out", str(args.held_out), *(["--small"] if args.small else [])]
    for side in (*ALONE, *WAYS):
        runs[side] = child(["-m", "benchmarks.setup", "--side", side, *flags])
        print(f"{side:6} {runs[side]['wall_s']:8.2f} s", flush=True)
    same = check(runs)
    seconds = {side: run["wall_s"] for side, run in runs.items()}
    plain = seconds["plain"] / seconds["pass"]
    report(
        NAME,
        seconds["apart"] / seconds["once"],
        GOAL,
        ratio_plain=plain,
        plain_goal_met=plain >= PLAIN_GOAL,
        seconds=seconds,
        engine_up_s={way: runs[way]["seconds"]["setup"] for way in WAYS},
        same_labels=same,
        **runs["once"]["cases"],
    )


if __name__ == "__main__":
    run_main(main)
