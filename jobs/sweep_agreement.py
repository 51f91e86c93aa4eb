"""Sweep over ν, the agreement of online labels: figure 5 of the paper. Writes sweep.json and sweep.png.

The swept key takes a list (default: the paper's grid), and seeds=[0,1,2] repeats every value.
"""

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from introspect_ray.runs.jobs import sweep_job
    from tune_spaces.agreement import SPACE

    sweep_job(args, SPACE)


if __name__ == "__main__":
    main(job, __doc__)
