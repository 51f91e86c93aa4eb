"""Figure 6: α, the share of labels taken from a second policy; KL stays towards M0 (paper §4.3)."""

from introspect_ray.runs.search_space import PAPER_SWEEPS

SPACE = PAPER_SWEEPS["alpha"]
