"""The dimensions of a policy, read off the model that transformers builds from its config, without weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.policy import BUNDLED

TABLE = Path(__file__).parent / "models.json"  # configs of known models, so that these need no network


@dataclass(frozen=True)
class ModelShape:
    """Dimensions and parameter counts of a decoder. Example: Qwen3-8B has hidden 4096, 36 layers, query 4096, key 1024.

    Tied parameters count once, but for `sent_parameters`.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    vocab: int
    query: int  # attention heads x head size
    key: int  # key-value heads x head size
    key_heads: int
    query_key_norms: bool
    tied: bool
    parameters: int  # of the whole policy
    layer: int  # of its largest decoder layer
    root: int  # outside the layers: embedding, final norm, output head
    matrices: int  # weights of the linear maps of all layers
    matrix_sides: int  # sum over these maps of inputs + outputs

    @property
    def head(self) -> int:
        """Weights of the output head, which are those of the embedding if tied."""
        return self.vocab * self.hidden

    @property
    def sent_parameters(self) -> int:
        """Parameters in a full weight update, which holds a tied head under both of its names."""
        return self.parameters + self.tied * self.head

    def lora_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear maps of the layers: rank x (inputs + outputs) each."""
        return rank * self.matrix_sides

    def forward_flops(self, tokens: float) -> float:
        """FLOPs of the layers over one sequence or tree: 2 per weight and token; QKᵀ and AV over all token pairs."""
        return 2.0 * self.matrices * tokens + 4.0 * self.layers * self.query * tokens**2

    def head_flops(self, rows: float) -> float:
        """FLOPs of the output head on `rows` positions."""
        return 2.0 * self.head * rows


def read_shape(name: str) -> ModelShape:
    """The shape of a policy: a model of the table, a bundled policy, a folder, a config.json, or a hub id.

    Only a hub id that is not in the table needs a network. Raises UserError where there is no config, or the model is
    not one that a plan knows.
    """
    with heavy_imports():
        from transformers import AutoConfig

        table: dict[str, Any] = json.loads(TABLE.read_text())
        del table["_source"]
        alias = next((n for n in (name, f"{name}-Instruct", name.removesuffix("-Base")) if n in table), None)
        path = BUNDLED.get(name) or Path(name).expanduser()
        try:
            if not (alias or path.exists() or (name.count("/") == 1 and name[0] not in "./~")):
                raise OSError("there is no such folder")  # or file, and it has not the form of a hub id
            config = (
                AutoConfig.for_model(**table[alias])
                if alias
                else AutoConfig.from_pretrained(path, trust_remote_code=False)
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"policy {name!r}: its config cannot be read ({' '.join(str(error).split())[:160]}): give a folder "
                f"with a config.json, or one of {', '.join(table)}"
            ) from None
        return shape_of(name, config)


def shape_of(name: str, config: Any) -> ModelShape:
    """The shape of the model that a transformers config describes, built on the meta device.

    Raises UserError for a model whose layers FSDP2 could not shard, or that has weights outside linear maps (experts).
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = getattr(model.get_decoder(), "layers", nn.ModuleList())
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    matrices = sum(module.weight.numel() for module in linear)
    if not matrices or matrices < sum(p.numel() for p in layers.parameters() if p.ndim > 1):
        raise UserError(
            f"policy {name!r}: {type(model).__name__} has layers with other weights than linear maps and norms, "
            "whose work a plan does not know: take a dense decoder"
        )
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    total, heads = model.num_parameters(), config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return ModelShape(
        name=name,
        layers=len(layers),
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        query=heads * head_size,
        key=key_heads * head_size,
        key_heads=key_heads,
        query_key_norms=any("q_norm" in key for key, _ in layers.named_parameters()),
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        parameters=total,
        layer=max(sizes),
        root=total - sum(sizes),
        matrices=matrices,
        matrix_sides=sum(module.in_features + module.out_features for module in linear),
    )
