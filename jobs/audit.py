"""Check a run's label table (output_dir=runs/x): provenance, versions, draws, steps. Exit code 1: violations."""

import sys

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from introspect_ray.labels.audit import audit_job

    if not audit_job(args):
        sys.exit(1)


if __name__ == "__main__":
    main(job, __doc__)
