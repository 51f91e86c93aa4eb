"""Seconds at ten times the cases over those at one time: do ten times the cases take ten times as long?

The work is the reference, the labelling (transformers engine, online rule) and the training steps of 256 organism
cases, and of 3 and 10 times as many. Each size runs in processes of its own; the fastest of three counts, without
imports. The ratio of the peak memory is given beside it.
"""

from __future__ import annotations

import json
import tempfile

from benchmarks.common import Clock, child, make_cases, parser, peak_rss, policy_folder, report, run_main

NAME, GOAL = "scaling", "<= 10.5"
BASE, FACTORS, GROUP, REPEATS = 256, (1, 3, 10), 128, 3


def measure(count: int) -> dict[str, float]:
    """Seconds and peak memory of one pass over `count` cases."""
    import torch

    from introspect_ray.cases.tokenize import longest_sequence
    from introspect_ray.config import load_config
    from introspect_ray.engines import make_engine
    from introspect_ray.labels.rules import Sources, make_labels
    from introspect_ray.training.learner import Learner
    from introspect_ray.training.reference import build_reference

    torch.set_num_threads(1)
    cfg = load_config(
        None, {"rollout.engine": "transformers", "rollout.group_size": GROUP, "supervision.rule": "online"}
    )
    policy = policy_folder(small=True)
    cases = {case.case_id: case for case in make_cases(policy, small=True, count=count)}
    ids = list(cases)
    engine = make_engine(cfg.rollout, policy, max_model_len=longest_sequence(list(cases.values())))
    engine.label_pairs([cases[i] for i in ids[:GROUP]])  # warm
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, clock:
        reference = build_reference(policy, list(cases.values()), None, folder)
        learner = Learner(cfg, policy, reference, cases)
        for start in range(0, count, GROUP):
            group = ids[start : start + GROUP]
            pairs = {pair.case_id: pair for pair in engine.label_pairs([cases[i] for i in group])}
            sources = Sources({i: cases[i].labels for i in group}, "organism", pairs)
            for first in range(0, len(group), cfg.batch_size):
                batch = group[first : first + cfg.batch_size]
                step = (start + first) // cfg.batch_size
                learner.step(make_labels(cfg, sources, step, batch, [pairs[i] for i in batch]), pairs)
    return {"wall_s": clock.wall, "cpu_s": clock.cpu, "peak_mb": peak_rss() / 2**20}


def better(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """The smaller seconds and the larger memory of two runs."""
    return {key: (max if key == "peak_mb" else min)(a[key], b[key]) for key in a}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, help="measure this many cases in this process and stop")
    args = arguments.parse_args()
    if args.count:
        return print(json.dumps(measure(args.count)))
    base = BASE // 8 if args.small else BASE
    runs: dict[int, dict[str, float]] = {}
    for _ in range(1 if args.small else REPEATS):
        for factor in FACTORS:
            run = child(["-m", "benchmarks.scaling", "--count", str(base * factor)])
            runs[factor] = better(run, runs.get(factor, run))
    for factor, run in runs.items():
        print(f"{factor * base:5} cases: {run['wall_s']:.2f} s, {run['peak_mb']:.0f} MB at most", flush=True)
    report(
        NAME,
        runs[10]["wall_s"] / runs[1]["wall_s"],
        GOAL,
        ratio_cpu=runs[10]["cpu_s"] / runs[1]["cpu_s"],
        ratio_3x=runs[3]["wall_s"] / runs[1]["wall_s"],
        memory_10x=runs[10]["peak_mb"] / runs[1]["peak_mb"],
        seconds=[run["wall_s"] for run in runs.values()],
        peak_mb=[run["peak_mb"] for run in runs.values()],
        base_cases=base,
    )


if __name__ == "__main__":
    run_main(main)
