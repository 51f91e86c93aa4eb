"""Label all cases of a task by one policy, in bulk: `introspect-ray label` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("label", sys.argv[1:])
