"""The main job on the bundled organism: `introspect-ray quickstart` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("quickstart", sys.argv[1:])
