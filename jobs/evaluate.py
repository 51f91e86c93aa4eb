"""Evaluate a trained policy: `introspect-ray evaluate` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("evaluate", sys.argv[1:])
