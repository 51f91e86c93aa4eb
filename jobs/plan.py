"""What a run would need on GPUs that are not here: memory, split, work, and a lower bound of the λ sweep's cost.

From a model's config alone. assume.NAME=VALUE replaces an assumption (all are printed), task.path and --tokenizer
give the cases themselves; every config key is an override as in a run.
"""

from __future__ import annotations

import argparse

from introspect_ray.cli import Arguments, main


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--policy", metavar="NAME", help="a known model, a folder, a config.json or a hub id")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs to plan for (default 8)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer to count the tokens of task.path with")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON too")


def job(args: Arguments) -> None:
    from introspect_ray.planning.job import plan_job
    from tune_spaces.kl_weight import SPACE

    plan_job(args, SPACE)


if __name__ == "__main__":
    main(job, __doc__, flags)
