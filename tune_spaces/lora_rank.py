"""Figure 17: LoRA with r = α on all linear layers (paper §D.1)."""

from introspect_ray.runs.search_space import PAPER_SWEEPS

SPACE = PAPER_SWEEPS["lora_rank"]
