"""From the name of a policy to its folder on this machine: bundled, local, converted from GGUF, or downloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from introspect_ray import organism
from introspect_ray.errors import Outage, UserError
from introspect_ray.hub import snapshot
from introspect_ray.policy.files import TOKENIZER_FILES, read_object
from introspect_ray.policy.gguf import convert_gguf, find_gguf

BUNDLED = {"organism": organism.FOLDER / "policy", "organism:second": organism.FOLDER / "second_policy"}
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
NOT_FROM_HUB = ["consolidated*", "original/*"]  # the same weights a second time, in the format of their authors


def resolve_policy(name: str) -> str:
    """The local Hugging Face folder of a policy.

    `name`: "organism", "organism:second", a folder, a .gguf file (or a folder that holds one and no config.json),
    which is converted once into the user's cache, or a hub id, which is downloaded.
    Raises UserError if the policy cannot be found, converted or downloaded, Outage if the hub stays away.
    """
    if name in BUNDLED:
        return str(BUNDLED[name])
    path = Path(name).expanduser()
    gguf = find_gguf(path)
    if gguf:
        return str(convert_gguf(gguf, Path.home() / ".cache" / "introspect-ray"))
    if path.exists():
        return str(path)
    return _download(name)


def local_policy(name: str) -> str:
    """The checked folder of a policy on this machine. Raises UserError as resolve_policy and check_policy do.

    Every process asks for its policy by name, since the nodes of a cluster have disks of their own. Downloads and
    conversions go to the user's cache, so several runs share them.
    """
    path = resolve_policy(name)
    check_policy(path)
    return path


def check_policy(name: str) -> None:
    """Refuse a policy that could not be trained, before anything heavy is imported or started.

    Of a hub id that is no local folder only the form is checked. Raises UserError naming what is missing and the
    remedy.
    """
    folder = BUNDLED.get(name) or Path(name).expanduser()
    try:
        there = folder.exists()
    except OSError as error:
        raise UserError(f"policy {name:.80}...: no name of a folder ({error.strerror}): correct it") from None
    if find_gguf(folder):
        return
    if not there:
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


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(part and not part.startswith(".") for part in parts)


def _download(name: str) -> str:
    if not _is_hub_id(name):
        raise UserError(f"policy {name!r}: there is no such folder, .gguf file or hub id (organization/name)")
    bar = None if sys.stderr.isatty() else _log_bar()
    try:
        return snapshot(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB, tqdm_class=bar)
    except Outage as error:
        raise Outage(
            f"policy {name!r} is no local folder, and {error}: check the network, or give a local folder"
        ) from error
    except Exception as error:  # HTTP, hub and OS errors share no base class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"policy {name!r} is no local folder and cannot be downloaded from the hub ({first[:200]}): "
            "check the name and HF_TOKEN, or give a local folder"
        ) from error


def _log_bar() -> type:
    """A progress bar for where stderr is no terminal: there the hub's own shows nothing, however long a download takes.
    It shows bytes and rate every 15 s."""
    from tqdm import tqdm

    class LogBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "mininterval": 15.0, "maxinterval": 30.0, "delay": 15.0})

    return LogBar


def _has_chat_template(folder: Path, name: str) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config, name).get("chat_template"))


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except UserError as error:
        raise UserError(f"policy {name!r}: {error}") from None
