"""Peak memory of the trainer over what it must hold: weights, gradients and both Adam moments in float32.

A process of its own takes four steps of the default batch (8 real MMLU cases, the longest of 404 tokens; each batch
twice) on SmolLM2-135M. Like a training worker it is given the cases as token ids. Nothing is subtracted from its peak.
The ratio is that of the defaults. Beside it: `all_kept`, which keeps every activation (its seconds say what the
defaults cost: `step_over_all_kept`), and `lean`, the options that save most (a tree at a time, layers computed again,
glibc told to give back what is freed). The defaults and `all_kept` must end with the same weights, bit for bit.
`opened_mb` is the peak once the policy is open and no weight has been read: interpreter, torch and our imports.
`step_s` and `step_cpu_s` are means of the second time over both batches.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import (
    Clock,
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

NAME, GOAL = "memory", "<= 1.8"
BATCH, BATCHES = 8, 2
ALL_KEPT = ("train.activation_checkpointing=none",)
LEAN = ("train.token_budget=256", "train.activation_checkpointing=layers")
LEAN_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def measure(given: Path, overrides: list[str], threads: int) -> dict[str, Any]:
    """Bytes: the peak once the policy is open, the peak after all steps, and the four copies of the weights."""
    import torch

    from introspect_ray.cli import parse_override
    from introspect_ray.config import RunConfig, override
    from introspect_ray.training.learner import Learner

    torch.set_num_threads(threads)
    policy, reference, cases, labels, pairs = pickle.loads(given.read_bytes())
    cfg = override(RunConfig(), dict(map(parse_override, overrides)))
    learner = Learner(cfg, policy, reference, {case.case_id: case for case in cases})
    opened = peak_rss()
    for _ in range(2):
        with (clock := Clock()):
            for start in range(0, len(cases), BATCH):
                learner.step(labels[start : start + BATCH], pairs)
    weights = sum(p.numel() * p.element_size() for p in learner.module.parameters())
    seconds = {"step_s": clock.wall / BATCHES, "step_cpu_s": clock.cpu / BATCHES}
    peaks = {"opened": opened, "peak": peak_rss(), "needed": 4 * weights}
    digest = hashlib.blake2b(digest_size=8)
    for parameter in learner.module.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return {**peaks, **seconds, "weights": digest.hexdigest(), "activations": learner.module.activations}


def run(given: Path, overrides: list[str], threads: int, env: dict[str, str] | None = None) -> dict[str, Any]:
    """`measure` in a process of its own: megabytes by name, the ratio, the seconds, and a hash of the weights."""
    command = ["-m", "benchmarks.memory", "--given", str(given), "--threads", str(threads), "--set", *overrides]
    found = child(command, env)
    megabytes = {f"{name}_mb": found.pop(name) / 2**20 for name in ("opened", "peak", "needed")}
    return {"ratio": megabytes["peak_mb"] / megabytes["needed_mb"], **megabytes, **found}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    arguments.add_argument("--given", type=Path, help="measure in this process on these pickled inputs, and stop")
    arguments.add_argument("--set", nargs="*", default=[], metavar="key=value", help="config overrides")
    args = arguments.parse_args()
    if args.given:
        return print(json.dumps(measure(args.given, args.set, args.threads)))
    from introspect_ray.training.reference import build_reference

    policy = policy_folder(args.small)
    cases = make_cases(policy, args.small, BATCH * BATCHES)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "given.pickle")
        reference = build_reference(policy, cases, None, folder)
        given.write_bytes(pickle.dumps((policy, reference, cases, make_labels(cases), make_pairs(cases))))
        default = run(given, args.set, args.threads)
        all_kept = run(given, [*ALL_KEPT, *args.set], args.threads)
        lean = run(given, [*LEAN, *args.set], args.threads, LEAN_ENVIRONMENT)
    for name, row in (("default", default), ("all kept", all_kept), ("lean", lean)):
        plain = (f"{key} {value:.2f}" if isinstance(value, float) else str(value) for key, value in row.items())
        print(f"{name:8}", ", ".join(plain), flush=True)
    if default["weights"] != all_kept["weights"]:
        sys.exit(f"{NAME}: with the defaults and with all activations kept the weights differ: no ratio to report")
    facts = {"step_over_all_kept": default["step_s"] / all_kept["step_s"]}
    facts |= {"step_cpu_over_all_kept": default["step_cpu_s"] / all_kept["step_cpu_s"]}
    overrides = " ".join(args.set) or "none"
    report(NAME, default.pop("ratio"), GOAL, **facts, **default, all_kept=all_kept, lean=lean, overrides=overrides)


if __name__ == "__main__":
    run_main(main)
