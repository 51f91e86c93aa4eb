"""Run the paper's experiments and write report.html: `introspect-ray reproduce` as a file, for `ray job submit`."""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("reproduce", sys.argv[1:])
