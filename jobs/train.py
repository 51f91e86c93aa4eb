"""Train a policy to explain itself: rollouts, relabelling, KL-regularised SFT; Self against Orig in summary.json."""

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from introspect_ray.runs.jobs import train_job

    train_job(args)


if __name__ == "__main__":
    main(job, __doc__)
