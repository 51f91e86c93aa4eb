"""A decoder's dimensions from its config.json, and what follows from them: parameters and FLOPs. No weights, no torch.

Known are the architectures of one plan: RMSNorm, grouped-query attention with rotary positions, gated MLP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.policy import BUNDLED

TABLE = Path(__file__).parent / "models.json"
# model_type -> (biases on q, k, v; norms on q and k)
KNOWN = {"llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder. Example: Qwen3-8B has hidden 4096, 36 layers, query width 4096, key width 1024."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    query: int  # attention heads x head size
    key: int  # key-value heads x head size
    head_dim: int
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def layer_matrices(self) -> int:
        """Weights of one layer's seven linear maps."""
        return self.hidden * (2 * self.query + 2 * self.key) + 3 * self.hidden * self.intermediate

    @property
    def layer(self) -> int:
        """Parameters of one decoder layer."""
        biases = self.qkv_bias * (self.query + 2 * self.key) + self.out_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        return self.layer_matrices + biases + 2 * self.hidden + self.qk_norm * 2 * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the output head (those of the embedding, if tied)."""
        return self.vocab * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the layers: embedding, final norm, head. FSDP2 keeps them gathered through a forward."""
        return self.head * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return self.layers * self.layer + self.root

    @property
    def sent_parameters(self) -> int:
        """Parameters in a full weight update, which holds a tied head under both of its names."""
        return self.parameters + (self.head if self.tied else 0)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers but the head: rank x (in + out) each."""
        ends = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends

    def body_flops(self, tokens: float) -> float:
        """FLOPs of the linear maps of one forward over `tokens` tokens: 2 a weight."""
        return 2.0 * self.layers * self.layer_matrices * tokens

    def attention_flops(self, pairs: float) -> float:
        """FLOPs of QKᵀ and of AV for `pairs` computed (query, key) positions in every layer."""
        return 4.0 * self.layers * self.query * pairs

    def head_flops(self, rows: float) -> float:
        """FLOPs of the output head on `rows` positions."""
        return 2.0 * self.head * rows

    def kv_bytes(self, width: int) -> int:
        """Bytes of keys and values of one token, `width` bytes a number."""
        return 2 * self.layers * self.key * width


def shape_from_config(name: str, config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises UserError for an unknown architecture or a missing key."""
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise UserError(f"policy {name!r}: no plan for model_type {kind!r}; known are {', '.join(KNOWN)}")
    missing = [key for key in _KEYS if not isinstance(config.get(key), int)]
    if missing:
        raise UserError(f"policy {name!r}: its config has no {', '.join(missing)}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)
    bias, norms = KNOWN[kind]
    attention = bool(config.get("attention_bias", False))
    return ModelShape(
        name=name,
        vocab=config["vocab_size"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        query=heads * head_dim,
        key=(config.get("num_key_value_heads") or heads) * head_dim,
        head_dim=head_dim,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or attention,
        out_bias=attention and kind != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)) and kind == "llama",
        qk_norm=norms,
    )


def read_shape(name: str) -> ModelShape:
    """The shape of a policy: a bundled one, one of the table, a folder, a config.json, or a hub id.

    Only a hub id that is not in the table needs a network. Raises UserError naming the remedy.
    """
    table: dict[str, Any] = json.loads(TABLE.read_text())
    for alias in (name, f"{name}-Instruct", name.removesuffix("-Base")):  # tuning changes no dimension
        if alias in table and not alias.startswith("_"):
            return shape_from_config(name, table[alias])
    path = BUNDLED.get(name) or Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.suffix == ".gguf":
        raise UserError(f"policy {name!r}: a plan reads a config.json; give the folder of the converted policy")
    if path.is_file():
        try:
            return shape_from_config(name, json.loads(path.read_text()))
        except (ValueError, AttributeError):
            raise UserError(f"policy {name!r}: {path} is not valid JSON of a model config") from None
    known = ", ".join(key for key in table if not key.startswith("_"))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"policy {name!r}: there is no such folder or config.json, nor is it in the table ({known})")
    return shape_from_config(name, _hub_config(name, known))


def _hub_config(name: str, known: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name).get_text_config().to_dict()
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())[:160]
        raise UserError(
            f"policy {name!r}: its config cannot be had from the hub ({line}): give a folder with its config.json, "
            f"or one of the table: {known}"
        ) from None
