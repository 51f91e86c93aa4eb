"""Policies: find, check, load, adapt, save. Importing this module does not import torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspect_ray.errors import UserError
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.organism import FOLDER as ORGANISM
from introspect_ray.weight_files import weight_files

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

BUNDLED = {
    "organism": ORGANISM / "policy",
    "organism:second": ORGANISM / "second_policy",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
SAMPLE_BYTES = 1 << 20
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
NOT_FROM_HUB = ["consolidated*", "original/*"]  # the weights once more, in their maker's own format


def resolve_policy(name: str, cache: str | None = None) -> str:
    """The local Hugging Face folder of a policy.

    `name`: "organism", "organism:second", a folder, a .gguf file (or a folder with one and no
    config.json), which is converted once into `cache`, or a hub id, which is downloaded.
    Raises UserError if it cannot be had.
    """
    if name in BUNDLED:
        return str(BUNDLED[name])
    path = Path(name).expanduser()
    gguf = _gguf_file(path)
    if gguf:
        return str(_convert_gguf(gguf, Path(cache) if cache else Path.home() / ".cache" / "introspect-ray"))
    if path.exists():
        return str(path)
    return _download(name)


def local_policy(name: str) -> str:
    """The folder of a policy on this machine; hub downloads and conversions are kept per user, not per run.

    Every process that needs a policy asks for it by name, since nodes of a cluster have disks of their own.
    """
    path = resolve_policy(name, str(Path.home() / ".cache" / "introspect-ray"))
    check_policy(path)
    return path


def check_policy(name: str) -> None:
    """Refuse a policy that could not be trained, before anything heavy is imported or started.

    Hub ids that are not in the local cache are only checked for their form. Raises UserError naming
    what is missing and the remedy.
    """
    folder = BUNDLED.get(name) or Path(name).expanduser()
    if _gguf_file(folder):
        return
    if not folder.exists():
        if name not in BUNDLED and _is_hub_id(name):
            return
        raise UserError(f"policy {name!r}: there is no such folder, .gguf file or hub id (organization/name)")
    if not folder.is_dir():
        raise UserError(f"policy {name!r} is a file: give the model folder, or a .gguf file")
    if not (folder / "config.json").is_file():
        raise UserError(f"policy {name!r} has no config.json: it is not a Hugging Face model folder")
    _read_json(folder / "config.json", name)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"policy {name!r} has no weights in *.safetensors: save it with save_pretrained")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(
            f"policy {name!r} is a model folder without a tokenizer (none of {', '.join(TOKENIZER_FILES)}): "
            "save the tokenizer into it with tokenizer.save_pretrained"
        )
    if not _has_chat_template(folder, name):
        raise UserError(
            f"policy {name!r} has a tokenizer without a chat template: use an instruction-tuned model, "
            "or add chat_template.jinja to the folder"
        )


def policy_id(path: str) -> str:
    """Content hash of a policy folder: 16 hex digits, addressing its label sets and reference cache.

    Over config.json, the tokenizer files, and of each weight file its size, its header and three samples
    of 1 MiB (start, middle, end): the cost does not grow with the model. Two versions of a model that
    differ in a few bytes only could collide; any training step changes all samples.
    """
    digest = hashlib.blake2b(digest_size=8)
    folder = Path(path)
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja", *TOKENIZER_FILES):
        if (folder / name).is_file():
            digest.update(name.encode() + (folder / name).read_bytes())
    for file in [*weight_files(folder), *sorted(folder.glob("pytorch_model*.bin"))]:
        size = file.stat().st_size
        digest.update(f"{file.name}|{size}".encode())
        with file.open("rb") as handle:
            for start in {0, max(0, size // 2), max(0, size - SAMPLE_BYTES)} if size > 3 * SAMPLE_BYTES else {-1}:
                handle.seek(max(start, 0))
                digest.update(handle.read(SAMPLE_BYTES if start >= 0 else size))
    return digest.hexdigest()


def load_model(path: str, dtype: torch.dtype | str = "auto", attention: str = "sdpa") -> PreTrainedModel:
    """The causal language model of a folder in train mode with all dropout off, on the CPU.

    dtype "auto" keeps that of the file; attention is transformers' attn_implementation. Train mode equals eval mode,
    but allows activation checkpointing. Raises UserError if the folder cannot be loaded.
    """
    with heavy_imports():
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(path)
            for part in (config, config.get_text_config()):
                for key, value in vars(part).items():
                    if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
                        setattr(part, key, 0.0)
            model = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, attn_implementation=attention
            )
        except (OSError, ValueError, KeyError) as error:
            remedy = "" if attention == "sdpa" else f" (loaded with {attention}; train.attention=sdpa does without)"
            said = " ".join(str(error).split())[:300]
            raise UserError(f"policy {path!r} cannot be loaded: {said}{remedy}") from error
    return model.train()


def add_lora(model: PreTrainedModel, rank: int, seed: int = 0) -> PeftModel:
    """LoRA on all linear layers but the output head, α = r (paper §D.1), no dropout, seeded; base frozen."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config).train()


def merge_adapter(base: str, adapter: str, out_dir: str) -> str:
    """`base` with the PEFT adapter folder merged in, as a Hugging Face folder in `out_dir`; returns it."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_model(base), adapter).merge_and_unload()
    save_policy(merged.state_dict(), base, out_dir)
    return out_dir


def is_adapter(path: str | None) -> bool:
    """Whether `path` is a PEFT adapter folder."""
    return path is not None and Path(path, "adapter_config.json").is_file()


def save_policy(
    state_dict: Mapping[str, torch.Tensor],
    source: str,
    out_dir: str,
    method: str = "full",
    adapter_config: Mapping[str, object] | None = None,
) -> None:
    """Write a policy so that from_pretrained (PeftModel.from_pretrained for "lora") gives the same logits.

    full: config and tokenizer of `source` with these weights (Hugging Face names), in their own dtype.
    lora: adapter_model.safetensors, adapter_config.json and the tokenizer.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for file in Path(source).iterdir():
        if file.suffix in (".json", ".jinja", ".model", ".txt") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, out / file.name)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    if method == "lora":
        from safetensors.torch import save_file

        (out / "config.json").unlink(missing_ok=True)  # with it, the folder would pass for a whole model
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        (out / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2, sort_keys=True))
        return
    from huggingface_hub import save_torch_state_dict

    config = json.loads((out / "config.json").read_text())
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    config.pop("torch_dtype", None)  # the older name of the same key
    config["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2))
    save_torch_state_dict(tensors, out, metadata={"format": "pt"})


def load_saved(folder: str, method: str = "full") -> tuple[dict[str, torch.Tensor], dict[str, object] | None]:
    """What save_policy was given: (tensors, adapter_config); a tied head is there again, under its own name."""
    from safetensors.torch import load_file

    tensors = {name: t for file in weight_files(folder) for name, t in load_file(file).items()}
    if method == "lora":
        return tensors, json.loads(Path(folder, "adapter_config.json").read_text())
    embeddings = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if "lm_head.weight" not in tensors and len(embeddings) == 1:
        tensors["lm_head.weight"] = tensors[embeddings[0]]
    return tensors, None


def _gguf_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if path.is_dir() and not (path / "config.json").exists():
        return next(iter(sorted(path.glob("*.gguf"))), None)
    return None


def _convert_gguf(file: Path, cache: Path) -> Path:
    """An HF folder (float32, tokenizer included) made from a GGUF file, once; named by sampled content."""
    digest = hashlib.blake2b(digest_size=8)
    size = file.stat().st_size
    with file.open("rb") as handle:
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            handle.seek(start)
            digest.update(handle.read(SAMPLE_BYTES))
    folder = cache / "policies" / f"{file.stem}-{digest.hexdigest()}"
    if (folder / "config.json").is_file():
        return folder
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"policy {str(file)!r}: reading GGUF files needs the package gguf (pip install gguf)") from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, name = str(file.parent), file.name
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"policy {str(file)!r} cannot be converted: {' '.join(str(error).split())[:300]}") from error
    # The loaded model refuses save_pretrained (its conversion cannot be reverted): a fresh one takes its weights.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config  # what is saved is float32; vLLM refuses the word gguf
    with torch.device("meta"):  # no time spent on an initialisation that is thrown away
        model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    with new_folder(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` in one rename; whoever comes second keeps the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp's 0700 would shut out other users of a shared cache
        work.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def _download(name: str) -> str:
    if not _is_hub_id(name):
        raise UserError(f"policy {name!r}: there is no such folder, .gguf file or hub id (organization/name)")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB)
    except Exception as error:  # requests, hub and OS errors share no base class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"policy {name!r} is no local folder and cannot be downloaded from the hub ({first[:200]}): "
            "check the name and HF_TOKEN, or give a local folder"
        ) from error


def _has_chat_template(folder: Path, name: str) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config, name).get("chat_template"))


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"policy {name!r}: {path.name} is not valid JSON ({error})") from None
