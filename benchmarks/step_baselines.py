"""A training step of ours against the loops a good engineer would write, each beside what its arithmetic allows.

    python -m benchmarks.step_baselines [--small] [--seeds N] [--loops NAME ...]

training_loops.py has the loops: padded in plan order, sorted by length, one sequence at a time, and packed under a
block-diagonal mask, each with a live and a cached M0. For each plan seed every side takes the same step of eight of the
32 MMLU cases, on the same weights, with AdamW (at a learning rate of 0, so that the weights stay the same), after one
real step. All objectives must agree to 1e-4. Ours is measured before, between and after the loops; its median counts.

`counted` is the ratio of the multiply-adds of both sides (padding included). The share of it that was reached, of the
loop that was fastest, is reported for every seed; `ratio` is the least of them. It is below 1 where a step of ours has
more beside its products than theirs. `best` is the least ratio of seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import Clock, make_cases, make_labels, make_pairs, parser, policy_folder, report, run_main
from benchmarks.training_loops import LOOPS, accumulate, counted, counted_ours, m0_logprobs, step_parts
from introspect_ray.config import RunConfig
from introspect_ray.planning.model_shape import ModelShape, read_shape
from introspect_ray.policy import load_model
from introspect_ray.records import Label, TokenizedCase
from introspect_ray.schedule import step_plan
from introspect_ray.training.learner import Learner
from introspect_ray.training.packing import pack
from introspect_ray.training.prompt_tree import TreeCache
from introspect_ray.training.reference import build_reference

NAME, GOAL = "step_baselines", ">= 0.95"
BATCH, COUNT, SEEDS, KL_WEIGHT, RATE, TOLERANCE = 8, 32, 6, 1.0, 1e-5, 1e-4
Step = tuple[list[TokenizedCase], list[Label]]


class Theirs:
    """One model and optimizer for all loops, with a live and a cached M0."""

    def __init__(self, policy: str, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> None:
        self.model = load_model(policy, torch.float32)
        self.reference = load_model(policy, torch.float32).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
        self.cached = m0_logprobs(self.reference, step_parts(cases, labels))

    def step(self, loop: str, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> float:
        """Take one optimizer step and return the objective before it."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = step_parts(cases, labels)
        loss = accumulate(self.model, loop, parts, KL_WEIGHT, self.reference, self.cached)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss


class Ours:
    def __init__(self, policy: str, cases: Sequence[TokenizedCase], folder: str) -> None:
        cfg = RunConfig(learning_rate=RATE, kl_weight=KL_WEIGHT, batch_size=BATCH)
        reference = build_reference(policy, cases, None, folder)
        self.budget, self.pairs = cfg.train.token_budget, make_pairs(cases)
        self.learner = Learner(cfg, policy, reference, {case.case_id: case for case in cases})

    def step(self, cases: Sequence[TokenizedCase], labels: Sequence[Label]) -> float:
        loss = self.learner.step(labels, self.pairs)["loss"]
        assert loss is not None
        return loss

    def counted(self, cases: Sequence[TokenizedCase], labels: Sequence[Label], shape: ModelShape) -> float:
        keys = [(label.case_id, label.explanation) for label in labels]
        trees = TreeCache().trees({case.case_id: case for case in cases}, keys, self.pairs)
        return counted_ours(pack(trees, self.budget), shape)


def stay(*optimizers: torch.optim.Optimizer) -> None:
    """From now on a step costs the same and changes no weight."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0


def compare(seed: int, step: Step, loops: Sequence[str], ours: Ours, theirs: Theirs, shape: ModelShape) -> dict:
    """Seconds, ratios and counted ratios of the step of one plan seed. Exits where the objectives differ."""
    own: list[float] = []
    seconds: dict[str, float] = {}
    losses: dict[str, float] = {}
    for number, loop in enumerate(loops):
        if number in (0, (len(loops) + 1) // 2):
            own.append(_timed_own(ours, step, losses))
        with (clock := Clock()):
            losses[loop] = theirs.step(loop, *step)
        seconds[loop] = clock.wall
    own.append(_timed_own(ours, step, losses))
    if max(losses.values()) - min(losses.values()) > TOLERANCE:
        sys.exit(f"{NAME}: the objectives differ, no ratio to report: {losses}")
    ours_s, parts, adds = statistics.median(own), step_parts(*step), ours.counted(*step, shape)
    ratios = {loop: value / ours_s for loop, value in seconds.items()}
    bound = {loop: counted(loop, parts, shape) / adds for loop in loops}
    best = min(seconds, key=lambda loop: seconds[loop])
    share = ratios[best] / bound[best]
    print(f"seed {seed}: ours {ours_s:.2f} s ({', '.join(f'{s:.2f}' for s in own)}), {adds / 1e9:.0f} G multiply-adds")
    for loop in loops:
        print(
            f"  {loop:14} {seconds[loop]:7.2f} s, {ratios[loop]:5.2f} of ours, counted {bound[loop]:5.2f}", flush=True
        )
    return {"ours_s": ours_s, "best": best, "share": share, "ratios": ratios, "counted": bound}


def _timed_own(ours: Ours, step: Step, losses: dict[str, float]) -> float:
    with (clock := Clock()):
        losses["ours"] = ours.step(*step)
    return clock.wall


def flags() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="torch threads, the same for all (default 2)")
    arguments.add_argument("--seeds", type=int, default=SEEDS, help=f"plan seeds 0, 1, ... (default {SEEDS})")
    arguments.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), metavar="LOOP", help=str(LOOPS))
    arguments.add_argument("--count", action="store_true", help="print the counted ratios alone, and stop")
    return arguments.parse_args()


def count(seeds: int, steps: Sequence[Step], loops: Sequence[str], shape: ModelShape) -> None:
    for seed, step in zip(range(seeds), steps, strict=True):
        keys = [(label.case_id, label.explanation) for label in step[1]]
        trees = TreeCache().trees({case.case_id: case for case in step[0]}, keys, make_pairs(step[0]))
        adds = counted_ours(pack(trees, RunConfig().train.token_budget), shape)
        row = {loop: round(counted(loop, step_parts(*step), shape) / adds, 2) for loop in loops}
        print(f"seed {seed}: ours {adds / 1e9:.0f} G multiply-adds, {row}")


def main() -> None:
    args = flags()
    torch.set_num_threads(args.threads)
    policy = policy_folder(args.small)
    cases = make_cases(policy, args.small, COUNT)
    labels = make_labels(cases)
    plans = [step_plan(seed, 0, len(cases), BATCH) for seed in range(args.seeds)]
    steps = [([cases[i] for i in plan], [labels[i] for i in plan]) for plan in plans]
    shape = read_shape(policy)
    if args.count:
        return count(args.seeds, steps, args.loops, shape)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Ours(policy, cases, folder), Theirs(policy, cases, labels)
        theirs.step("sorted cached", *steps[-1])
        ours.step(*steps[-1])
        stay(theirs.optimizer, ours.learner.optimizer)
        rows = [compare(seed, step, args.loops, ours, theirs, shape) for seed, step in enumerate(steps)]
    shares: dict[str, Any] = {f"seed {seed}": [row["best"], row["share"]] for seed, row in enumerate(rows)}
    report(
        NAME,
        min(row["share"] for row in rows),
        GOAL,
        best=min(min(row["ratios"].values()) for row in rows),
        shares=shares,
        ratios={loop: [row["ratios"][loop] for row in rows] for loop in args.loops},
        counted={loop: [row["counted"][loop] for row in rows] for loop in args.loops},
        ours_s=[row["ours_s"] for row in rows],
        threads=args.threads,
        policy="organism" if args.small else "SmolLM2-135M",
    )


if __name__ == "__main__":
    run_main(main)
