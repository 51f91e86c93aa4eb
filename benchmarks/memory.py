"""Peak memory of the trainer over what it must hold: weights, gradients and both Adam moments in float32.

A process of its own takes two steps of the default batch (8 real MMLU cases, the longest of 404 tokens) on
SmolLM2-135M. Like a training worker it is given the cases as token ids. Nothing is subtracted from its peak.
It runs twice. The ratio is that of the first run, with the options that save memory (LEAN: one tree at a time,
activation checkpointing, and glibc told to give back what is freed). The second run has the defaults, which are faster.
`opened_mb` is the peak once the policy is open and no weight has been read: interpreter, torch and our imports.
`step_s` are the seconds of the second step.
"""

from __future__ import annotations

import json
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    child,
    make_cases,
    make_labels,
    make_pairs,
    parser,
    peak_rss,
    policy_folder,
    report,
    run_main,
)

NAME, GOAL = "memory", "<= 1.25"
BATCH, STEPS = 8, 2
LEAN = ("train.token_budget=256", "train.activation_checkpointing=true")
LEAN_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(given: Path, overrides: list[str]) -> dict[str, float]:
    """Bytes: the peak once the policy is open, the peak after two steps, and the four copies of the weights."""
    import torch

    from introspect_ray.cli import parse_override
    from introspect_ray.config import RunConfig, override
    from introspect_ray.training.learner import Learner

    torch.set_num_threads(2)
    policy, reference, cases, labels, pairs = pickle.loads(given.read_bytes())
    cfg = override(RunConfig(), dict(map(parse_override, overrides)))
    learner = Learner(cfg, policy, reference, {case.case_id: case for case in cases})
    opened = peak_rss()
    for start in range(0, len(cases), BATCH):
        began = time.perf_counter()
        learner.step(labels[start : start + BATCH], pairs)
        seconds = time.perf_counter() - began
    weights = sum(p.numel() * p.element_size() for p in learner.module.parameters())
    return {"opened": opened, "peak": peak_rss(), "needed": 4 * weights, "step_s": seconds}


def run(given: Path, overrides: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
    """`measure` in a process of its own: megabytes by name, the ratio, the seconds."""
    found = child(["-m", "benchmarks.memory", "--given", str(given), "--set", *overrides], env)
    megabytes = {f"{name}_mb": found[name] / 2**20 for name in ("opened", "peak", "needed")}
    return {"ratio": found["peak"] / found["needed"], **megabytes, "step_s": found["step_s"]}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--given", type=Path, help="measure in this process on these pickled inputs, and stop")
    arguments.add_argument("--set", nargs="*", default=[], metavar="key=value", help="config overrides")
    args = arguments.parse_args()
    if args.given:
        return print(json.dumps(measure(args.given, args.set)))
    from introspect_ray.training.reference import build_reference

    policy = policy_folder(args.small)
    cases = make_cases(policy, args.small, BATCH * STEPS)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "given.pickle")
        reference = build_reference(policy, cases, None, folder)
        given.write_bytes(pickle.dumps((policy, reference, cases, make_labels(cases), make_pairs(cases))))
        lean = run(given, [*LEAN, *args.set], LEAN_ENVIRONMENT)
        default = run(given, args.set)
    for name, row in (("lean", lean), ("default", default)):
        print(f"{name:8}", ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    report(NAME, lean.pop("ratio"), GOAL, **lean, default=default, overrides=" ".join(args.set) or "none")


if __name__ == "__main__":
    run_main(main)
