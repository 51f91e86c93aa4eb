"""What a run would need on GPUs that are not here: `introspect-ray plan` as a file."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("plan", sys.argv[1:])
