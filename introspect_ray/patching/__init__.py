"""Activation patching (paper §3.3, figures 3, 15 and 16): do interventions that move an answer move its explanation?

Needs torch and transformers alone. `choose_pairs` finds prompts to patch between, `patch_grid` patches every (layer,
token) of them, and `correlations` says how far the two effects go together.
"""

from introspect_ray.patching.grid import DIRECTIONS, Grid, patch_grid
from introspect_ray.patching.pairs import PromptPair, choose_pairs
from introspect_ray.patching.scores import Correlation, correlations, grid_rows, largest_effects, median_gaps

__all__ = [
    "DIRECTIONS",
    "Correlation",
    "Grid",
    "PromptPair",
    "choose_pairs",
    "correlations",
    "grid_rows",
    "largest_effects",
    "median_gaps",
    "patch_grid",
]
