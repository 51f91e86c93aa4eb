"""Figure 5: ν, the agreement of labels rebuilt online at every gradient step (paper §4.2)."""

from introspect_ray.runs.search_space import Space

SPACE = Space("supervision.agreement", (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), fixed={"supervision.rule": "online"})
