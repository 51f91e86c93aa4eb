"""Train a policy to explain itself: `introspect-ray train` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
