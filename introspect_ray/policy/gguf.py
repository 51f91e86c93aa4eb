"""GGUF files: converted once into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from introspect_ray.errors import UserError
from introspect_ray.policy.files import SAMPLE_BYTES, damage, discard, new_folder, write_list

_log = logging.getLogger(__name__)
_whole: set[Path] = set()  # folders that this process has compared with their lists


def find_gguf(path: Path) -> Path | None:
    """`path` if it is a .gguf file, or the first .gguf file of a folder without config.json."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if path.is_dir() and not (path / "config.json").exists():
        return next(iter(sorted(path.glob("*.gguf"))), None)
    return None


def convert_gguf(file: Path, cache: Path) -> Path:
    """The Hugging Face folder (float32, with tokenizer) made from a GGUF file; its name has a hash of the content.

    One that is there is compared with its list of checksums, once in a process; a damaged one is made again.
    Raises UserError where the package gguf is missing or transformers cannot read the file.
    """
    folder = cache / "policies" / f"{file.stem}-{_sampled_hash(file)}"
    if folder in _whole:
        return folder
    if folder.is_dir():
        if (problem := damage(folder)) is None:
            _whole.add(folder)
            return folder
        _log.warning("%s, made from %s, is damaged (%s): it is made again", folder, file, problem)
        discard(folder)
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
    except Exception as error:  # whatever the readers make of a damaged file
        raise UserError(f"policy {str(file)!r} cannot be converted: {' '.join(str(error).split())[:300]}") from error
    # The loaded model refuses save_pretrained (its conversion cannot be reverted): a new model takes its weights.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config  # what is saved is float32; vLLM refuses quantization "gguf"
    with torch.device("meta"):  # no time is spent on an initialisation that is thrown away
        model = type(loaded)(loaded.config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    with new_folder(folder) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        write_list(work)
    _whole.add(folder)
    return folder


def _sampled_hash(file: Path) -> str:
    """16 hex digits over three samples of 1 MiB: start, middle and end."""
    digest = hashlib.blake2b(digest_size=8)
    size = file.stat().st_size
    with file.open("rb") as handle:
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            handle.seek(start)
            digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()
