"""Figure 17: LoRA with r = α on all linear layers (paper §D.1)."""

from introspect_ray.runs.search_space import Space

SPACE = Space("lora_rank", (32, 64, 80, 96, 128, 256), fixed={"method": "lora"})
