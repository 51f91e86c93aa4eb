"""The model of a policy folder: load it, adapt it with LoRA, merge an adapter, save it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.policy.files import ADAPTER, weight_files
from introspect_ray.policy.weights import check_adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_model(path: str, dtype: torch.dtype | str = "auto", attention: str = "sdpa") -> PreTrainedModel:
    """The causal language model of a folder, on the CPU, in train mode with all dropout off.

    dtype: "auto" keeps the type of the weight files. attention: transformers' attn_implementation. Without dropout,
    train mode computes what eval mode computes, and it allows activation checkpointing. Only safetensors are read,
    and no code that comes with a model is run. Raises UserError if the folder cannot be loaded, or lacks one of the
    model's tensors.
    """
    with heavy_imports():
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            for part in (config, config.get_text_config()):
                for key, value in vars(part).items():
                    if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
                        setattr(part, key, 0.0)
            model, found = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            remedy = "" if attention == "sdpa" else f" (with attention {attention}: train.attention=sdpa may load it)"
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"policy {path!r} cannot be loaded: {reason}{remedy}") from error
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers
        raise UserError(
            f"policy {path!r}: its weight files lack {len(missing)} tensors of the model, e.g. {missing[0]}: copy the "
            "whole folder again"
        )
    return model.train()


def add_lora(model: PreTrainedModel, rank: int, seed: int = 0) -> PeftModel:
    """`model`, frozen, with a seeded LoRA adapter on all linear layers but the output head; α = r (paper §D.1)."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config).train()


def merge_adapter(base: str, adapter: str, out_dir: str) -> str:
    """Merge a PEFT adapter folder into the policy folder `base` and save the result in `out_dir`; returns `out_dir`."""
    from peft import PeftModel

    check_adapter(adapter)  # PEFT would take a pickled one where this is missing
    merged = PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload()
    save_policy(merged.state_dict(), base, out_dir)
    return out_dir


def save_policy(
    state_dict: Mapping[str, torch.Tensor],
    source: str,
    out_dir: str,
    method: str = "full",
    adapter_config: Mapping[str, object] | None = None,
) -> None:
    """Write a policy folder that from_pretrained (for "lora": PeftModel.from_pretrained) loads with the same logits.

    full: config and tokenizer of the folder `source` with the weights of `state_dict` (Hugging Face names), in their
    own dtype. lora: adapter_model.safetensors, adapter_config.json and the tokenizer.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for file in Path(source).iterdir():
        if file.suffix in (".json", ".jinja", ".model", ".txt") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    if method == "lora":
        from safetensors.torch import save_file

        (out / "config.json").unlink(missing_ok=True)  # with it, the folder would look like a whole model
        save_file(tensors, out / ADAPTER, metadata={"format": "pt"})
        (out / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2, sort_keys=True))
        return
    from huggingface_hub import save_torch_state_dict

    config = json.loads((out / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    config.pop("torch_dtype", None)  # the older name of "dtype"
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_torch_state_dict(tensors, out, metadata={"format": "pt"})


def load_saved(folder: str, method: str = "full") -> tuple[dict[str, torch.Tensor], dict[str, object] | None]:
    """The (tensors, adapter_config) that save_policy wrote. A tied output head appears under its own name again."""
    from safetensors.torch import load_file

    tensors = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    if method == "lora":
        return tensors, json.loads(Path(folder, "adapter_config.json").read_text())
    embeddings = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if "lm_head.weight" not in tensors and len(embeddings) == 1:
        tensors["lm_head.weight"] = tensors[embeddings[0]]
    return tensors, None
