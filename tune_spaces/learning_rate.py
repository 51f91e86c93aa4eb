"""Figure 18: the learning rate (paper §D.2). These are its values for 8B policies; small ones take larger."""

from introspect_ray.runs.search_space import PAPER_SWEEPS

SPACE = PAPER_SWEEPS["lr"]
