"""Figure 18: the learning rate (paper §D.2). These are its values for 8B policies; small ones take larger."""

from introspect_ray.runs.search_space import Space

SPACE = Space("learning_rate", (5e-6, 1e-5, 2e-5, 3e-5, 5e-5, 1e-4), fixed={})
