"""Evaluate a trained policy (eval.policy=FOLDER) against M0 (policy=...) on the held-out cases: evaluation.json."""

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from introspect_ray.runs.jobs import evaluate_job

    evaluate_job(args)


if __name__ == "__main__":
    main(job, __doc__)
