"""Figure 5: ν, the agreement of labels rebuilt online at every gradient step (paper §4.2)."""

from introspect_ray.runs.search_space import PAPER_SWEEPS

SPACE = PAPER_SWEEPS["agreement"]
