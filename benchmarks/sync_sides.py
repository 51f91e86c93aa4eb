"""Both sides of sync.py: the trainer, and the plain loops that a verified sync is compared with. Not a benchmark of its
own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from introspect_ray.cases.probes import ProbePlan
from introspect_ray.config import load_config
from introspect_ray.policy import BUNDLED
from introspect_ray.records import TokenizedCase
from introspect_ray.training.learner import Learner
from introspect_ray.training.reference import build_reference

RANK = 32
ORGANISM = BUNDLED["organism"]
LONG = tuple(range(200, 350))  # token ids of a prompt as long as a Hint-MMLU case; the probe takes a part of it
CASE = TokenizedCase("probe", ("A", "B"), ((330,), (331,)), LONG, (*LONG[:-4], 7, 8, 9, 10), (5, 6), {})
PROBES = ProbePlan([CASE], np.arange(49152) < 2000, load_config(None, {}).rollout.probe_tokens, seed=0)
PLAIN = ("tensors", "arrays")  # how a plain loop puts the state dict into the object store


def make_policy(folder: str, layers: int) -> None:
    """SmolLM2-135M's architecture with random weights; the tokenizer beside it is never used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ORGANISM / name, folder)


def make_learner(folder: str, method: str) -> Learner:
    """The learner of a run; LoRA's adapter is moved away from zero."""
    cfg = load_config(None, {"method": method, "lora_rank": RANK, "output_dir": folder})
    reference = build_reference(folder, [CASE], None, str(Path(folder, "reference")))
    learner = Learner(cfg, folder, reference, {CASE.case_id: CASE}, longest=len(LONG))
    move(learner, scale=0.02)
    return learner


@torch.no_grad()
def move(learner: Learner, scale: float = 1e-3) -> None:
    """Make another version of the weights: change every trained matrix in place."""
    for parameter in learner.module.parameters():
        if parameter.requires_grad and parameter.ndim == 2:
            parameter.add_(torch.randn(parameter.shape[1]) * scale)


def put_plain(learner: Learner, how: str) -> Any:
    """The state dict in the object store, as one would write it: as it is, or as the arrays under its tensors."""
    state = learner.module.causal_lm.state_dict()
    return ray.put(state if how == "tensors" else {name: tensor.numpy() for name, tensor in state.items()})


def load_plain(worker: Any, state: dict[str, Any]) -> None:
    """Runs in the engine's actor: vLLM's own reload of a state dict, and an empty prefix cache. Nothing is checked."""
    engine = worker._engine._engine
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": _tensors(state)})
    engine.reset_prefix_cache()


def load_unverified(worker: Any, state: dict[str, Any]) -> None:
    """Runs in the engine's actor: our own load of a state dict, and an empty prefix cache. Nothing is checked."""
    engine = worker._engine
    engine._load_full(dict(_tensors(state)))
    engine._engine.reset_prefix_cache()


def _tensors(state: dict[str, Any]) -> Any:
    return (
        (name, value if isinstance(value, torch.Tensor) else torch.from_numpy(value)) for name, value in state.items()
    )


def probe_of(worker: Any, probe: Any) -> tuple[float, ...]:
    """Runs in the engine's actor: the logprobs of a probe on what is served now."""
    found: tuple[float, ...] = worker._engine._probe(probe)
    return found
