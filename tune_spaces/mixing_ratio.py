"""Figure 6: α, the share of labels taken from a second policy; KL stays towards M0 (paper §4.3)."""

from introspect_ray.runs.search_space import Space

SPACE = Space("supervision.mixing_ratio", (0.0, 0.25, 0.5, 0.75, 1.0), fixed={"supervision.rule": "mixed"})
