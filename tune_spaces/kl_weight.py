"""Figure 4: λ, the weight of the behavioural regulariser, over five orders of magnitude (paper §4.1)."""

from introspect_ray.runs.search_space import Space

SPACE = Space("kl_weight", (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 1e-1, 1.0, 10.0), fixed={})
