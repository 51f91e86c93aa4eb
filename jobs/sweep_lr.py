"""Sweep over the learning rate: figure 18 of the paper. Writes sweep.json and sweep.png.

The swept key takes a list (default: the paper's grid), and seeds=[0,1,2] repeats every value.
"""

import sys

from introspect_ray.commands import run

if __name__ == "__main__":
    run("sweep", ["lr", *sys.argv[1:]], description=__doc__)
