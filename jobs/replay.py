"""Train a run again from its label table alone (source=runs/x output_dir=runs/x-replay) and compare the weights.

Exit code 0: the same bits as the recorded policy (or none was recorded); 1: they differ.
"""

import sys

from introspect_ray.cli import Arguments, main


def job(args: Arguments) -> None:
    from introspect_ray.runs.replay import replay_job

    if not replay_job(args):
        sys.exit(1)


if __name__ == "__main__":
    main(job, __doc__)
