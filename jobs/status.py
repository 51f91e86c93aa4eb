"""What the running jobs of a cluster do: `introspect-ray status` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("status", sys.argv[1:])
