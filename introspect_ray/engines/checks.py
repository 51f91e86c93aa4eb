"""Checks of prompts and weight updates, and the reading of policy folders, alike for all engines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from introspect_ray.engines.protocol import WeightUpdate
from introspect_ray.errors import UserError, one_line
from introspect_ray.policy import stored_shapes
from introspect_ray.policy.files import read_object

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
_PEFT_PREFIX = "base_model.model."
_HEAD, _EMBEDDING_SUFFIX = "lm_head.weight", "embed_tokens.weight"
VLLM_MAX_TOKENS = 128  # vLLM's limit on logprob_token_ids
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts for max_lora_rank


class NextToken(NamedTuple):
    """What a policy would write after one prompt."""

    logprobs: tuple[float, ...]  # of the tokens asked for, natural logs of the full-vocabulary softmax
    argmax_token: int  # over the full vocabulary


def policy_shapes(policy_path: str) -> Shapes:
    """The shapes of a full update by Hugging Face name, from the safetensors headers; no tensor is loaded.

    They include a tied output head, which the files leave out: an engine may hold a packed copy of the head, and an
    update of the embedding alone would not reach it. Raises UserError where a file cannot be read, or there is none.
    """
    shapes = stored_shapes(policy_path)
    embeddings = [name for name in shapes if name.endswith(_EMBEDDING_SUFFIX)]
    if _HEAD not in shapes and len(embeddings) == 1:
        shapes[_HEAD] = shapes[embeddings[0]]
    return shapes


def check_vllm_limits(choices: Iterable[Sequence[int]], lora_rank: int = 0) -> None:
    """Raises UserError for a larger choice of next tokens, or a larger LoRA rank (0: no LoRA), than vLLM serves.

    choices: the children of each inner node of the cases' label tries; the labels themselves if they have one token.
    """
    most = max(map(len, choices), default=0)
    if most > VLLM_MAX_TOKENS:
        raise UserError(
            f"the labels of a case go on with {most} different tokens at one place, but vLLM returns the logprobs of "
            f"at most {VLLM_MAX_TOKENS} given tokens: use fewer labels, or rollout.engine=transformers"
        )
    if lora_rank > VLLM_LORA_RANKS[-1]:
        raise UserError(
            f"lora_rank={lora_rank}, but vLLM serves at most {VLLM_LORA_RANKS[-1]}: lower it, or use "
            "rollout.engine=transformers"
        )


def eos_token_ids(policy_path: str) -> tuple[int, ...]:
    """The end-of-turn ids of a policy folder, ascending.

    They are `eos_token_id` in generation_config.json and config.json, and the tokenizer's own `eos_token`, which ends
    the turns of chat models and is missing from many configs. Raises UserError where no file names one: generation
    would never stop.
    """
    folder = Path(policy_path)
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        found = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(one) is int for one in found):
            raise UserError(
                f"{folder / name}: eos_token_id is {value!r:.80}, not a token's number or a list of them: correct it"
            )
        ids.update(found)
    try:
        ids.update(_tokenizers_eos(folder))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"policy folder {policy_path}: the special tokens of its tokenizer cannot be read ({one_line(error):.80}): "
            "copy the folder again"
        ) from None
    if not ids:
        raise UserError(
            f"policy folder {policy_path} names no end-of-turn token: set eos_token_id in its generation_config.json"
        )
    return tuple(sorted(ids))


def _tokenizers_eos(folder: Path) -> list[int]:
    """The ids of the tokenizer's eos_token. Raises whatever a wrong file leads to."""
    tokenizer = _json(folder / "tokenizer_config.json")
    eos = tokenizer.get("eos_token")
    text = eos.get("content") if isinstance(eos, dict) else eos
    added = [(int(i), t["content"]) for i, t in (tokenizer.get("added_tokens_decoder") or {}).items()]
    full = _json(folder / "tokenizer.json") if text else {}
    added += [(token["id"], token["content"]) for token in full.get("added_tokens") or []]
    return [i for i, content in added if content == text]


def architectures(policy_path: str) -> tuple[str, ...]:
    """The key `architectures` of config.json. Raises UserError where it is missing."""
    names = _json(Path(policy_path) / "config.json").get("architectures")
    if not names or not isinstance(names, list):
        raise UserError(f"{policy_path}/config.json names no architectures: save the policy with save_pretrained")
    return tuple(names)


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def check_prompts(prompts: Sequence[Sequence[int]], new_tokens: int, max_model_len: int) -> None:
    """Raises ValueError for an empty prompt and for a prompt that leaves no room for `new_tokens`."""
    for index, prompt in enumerate(prompts):
        if not prompt or len(prompt) + new_tokens > max_model_len:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens: it needs at least 1 and, with {new_tokens} new tokens, at "
                f"most {max_model_len}; raise rollout.max_model_len or shorten the case"
            )


def check_full(update: WeightUpdate, expected: Shapes) -> None:
    """Raises ValueError naming the first tensor of a full update whose name or shape is not that of the policy."""
    check_shapes({name: tuple(t.shape) for name, t in update.tensors.items()}, expected, _refused(update))


def check_adapter(update: WeightUpdate, base: Shapes, max_rank: int) -> None:
    """Raises ValueError where the tensors of a LoRA adapter are not those of its target modules in the base policy."""
    config = update.adapter_config
    if config is None:
        raise ValueError(f"the adapter update of version {update.version} has no adapter_config")
    rank, targets = int(config["r"]), config["target_modules"]  # type: ignore[call-overload]
    if rank > max_rank:
        raise ValueError(
            f"the adapter's rank {rank} exceeds the engine's {max_rank}: start the engine with lora_rank={rank}"
        )
    expected: Shapes = {}
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and _is_target(module, targets):
            expected[f"{_PEFT_PREFIX}{module}.lora_A.weight"] = (rank, shape[1])
            expected[f"{_PEFT_PREFIX}{module}.lora_B.weight"] = (shape[0], rank)
    if not expected:
        raise ValueError(f"the adapter's target_modules {targets!r} match no linear layer of the policy")
    check_shapes({name: tuple(t.shape) for name, t in update.tensors.items()}, expected, _refused(update))


def _is_target(module: str, targets: object) -> bool:
    if isinstance(targets, str):  # PEFT: a string is a regular expression over the whole name
        return re.fullmatch(targets, module) is not None
    return any(module == t or module.endswith(f".{t}") for t in targets)  # type: ignore[attr-defined]


def _refused(update: WeightUpdate) -> str:
    return f"weight update of version {update.version} refused, nothing changed:"


def check_shapes(got: Mapping[str, tuple[int, ...]], expected: Shapes, prefix: str) -> None:
    """Raises ValueError for the first tensor whose name or shape is not as expected; `prefix` begins its message."""
    for name in sorted(expected):
        if name not in got:
            tied = " (send a tied head too: use state_dict(), not named_parameters())" if name == _HEAD else ""
            raise ValueError(f"{prefix} {name} {list(expected[name])} is missing{tied}")
        if got[name] != expected[name]:
            raise ValueError(f"{prefix} {name} has shape {list(got[name])}, the engine's is {list(expected[name])}")
    for name in sorted(got):
        if name not in expected:
            raise ValueError(f"{prefix} {name} {list(got[name])} is not a tensor of the policy")


def nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all tensors. Tied tensors count under each of their names."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
