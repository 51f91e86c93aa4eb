"""Train a run again from its label table: `introspect-ray replay` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("replay", sys.argv[1:])
