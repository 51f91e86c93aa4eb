"""Peak memory of the trainer over what it cannot do without: weights, gradients and both Adam moments, float32.

Two steps of the default batch (8 real MMLU cases) on SmolLM2-135M in a process of its own; nothing is subtracted. The
peak that interpreter, torch and our imports have before any weight is loaded stands beside it.
"""

from __future__ import annotations

import json
import tempfile

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


def measure(small: bool, reference: str, overrides: dict[str, object]) -> dict[str, float]:
    """Bytes: before anything is loaded, the peak after two steps, and the four copies of the weights."""
    import torch

    from introspect_ray.config import RunConfig, override
    from introspect_ray.learner import Learner

    torch.set_num_threads(2)
    policy = policy_folder(small)
    cases = make_cases(policy, small, BATCH * STEPS)
    labels, pairs = make_labels(cases), make_pairs(cases)
    imports = peak_rss()
    learner = Learner(override(RunConfig(), overrides), policy, reference, {case.case_id: case for case in cases})
    loaded = peak_rss()
    for start in range(0, len(cases), BATCH):
        learner.step(labels[start : start + BATCH], pairs)
    weights = sum(p.numel() * p.element_size() for p in learner.module.parameters())
    return {"imports": imports, "loaded": loaded, "peak": peak_rss(), "needed": 4 * weights}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--reference", help="measure in this process with this reference, and stop")
    arguments.add_argument("--set", nargs="*", default=[], metavar="key=value", help="config overrides")
    args = arguments.parse_args()
    if args.reference:
        from introspect_ray.cli import parse_override

        return print(json.dumps(measure(args.small, args.reference, dict(map(parse_override, args.set)))))
    from introspect_ray.reference import build_reference

    policy = policy_folder(args.small)
    small = ["--small"] if args.small else []
    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference(policy, make_cases(policy, args.small, BATCH * STEPS), folder)
        run = child(["-m", "benchmarks.memory", *small, "--reference", reference, "--set", *args.set])
    megabytes = {f"{name}_mb": value / 2**20 for name, value in run.items()}
    print(", ".join(f"{name.removesuffix('_mb')} {value:.0f} MB" for name, value in megabytes.items()))
    report(NAME, run["peak"] / run["needed"], GOAL, **megabytes, overrides=" ".join(args.set) or "none")


if __name__ == "__main__":
    run_main(main)
