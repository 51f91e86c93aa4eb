"""Controls of finished runs: `introspect-ray controls` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("controls", sys.argv[1:])
