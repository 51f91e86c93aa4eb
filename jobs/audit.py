"""Check a run's label table: `introspect-ray audit` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("audit", sys.argv[1:])
