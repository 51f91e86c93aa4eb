"""Tell MLflow what it was not told of a run: `introspect-ray track` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("track", sys.argv[1:])
