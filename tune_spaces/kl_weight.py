"""Figure 4: λ, the weight of the behavioural regulariser, over five orders of magnitude (paper §4.1)."""

from introspect_ray.runs.search_space import PAPER_SWEEPS

SPACE = PAPER_SWEEPS["lambda"]
