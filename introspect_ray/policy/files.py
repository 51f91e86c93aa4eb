"""The files of a policy folder: which of them hold the weights, and a hash over their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError, one_line
from introspect_ray.storage.digests import digest_of, in_parallel

LIST = "checksums.json"  # of a folder that this program made: size and checksum of each other file in it
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
SAMPLE_BYTES = 1 << 20


def weight_files(folder: str | Path) -> list[Path]:
    """The *.safetensors files that from_pretrained reads, sorted: those of the index, else the single file, else all.

    A repository may hold the same weights a second time under another name (consolidated.safetensors). Raises UserError
    for an index that cannot be used.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return sorted(folder / name for name in _indexed(folder / INDEX))
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    return sorted(folder.glob("*.safetensors"))


def _indexed(index: Path) -> set[str]:
    """The file names of an index. A name that leads out of the folder is refused."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: copy the policy's folder again")
    names = set(map(str, weight_map.values()))
    for name in sorted(names):
        if Path(name).name != name:
            raise UserError(
                f"{index} names {name!r}, which is not a file of its folder: take another copy of the policy"
            )
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name!r}, and there is no such file: copy the policy's folder again")
    return names


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, which names the file, for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON ({one_line(error):.120})") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold a JSON object, found {type(found).__name__}")
    return found


def is_adapter(path: str | None) -> bool:
    """Whether `path` is a PEFT adapter folder."""
    return path is not None and Path(path, "adapter_config.json").is_file()


def policy_id(path: str) -> str:
    """Content hash of a policy folder: 16 hex digits. Label sets and reference caches are stored under it.

    It covers config.json, the tokenizer files and, for each weight file, its size and three samples of 1 MiB (start,
    which includes the header, middle and end), so its cost does not grow with the model. Two versions of a model that
    differ in a few bytes could collide; a training step changes all samples.
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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` in one rename. Where several processes make it, the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp's 0700 would lock other users out of a shared cache
        work.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder, out of the way of others at once: processes that have its files open go on with them. Nothing
    happens if it is not there. Raises OSError if this user may not."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def write_list(folder: Path) -> None:
    """Write the list of all files of `folder`."""
    names = _names(folder)
    written = in_parallel(lambda name: digest_of(folder / name), names)
    (folder / LIST).write_text(json.dumps(dict(zip(names, written, strict=True))))


def damage(folder: Path) -> str | None:
    """What differs between the files of `folder` and its list; None if nothing does. Reads all of them."""
    try:
        listed = json.loads((folder / LIST).read_text())
        found = in_parallel(lambda name: digest_of(folder / name), listed)
        wrong = [name for name, written in zip(listed, found, strict=True) if written != listed[name]]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    unlisted = [name for name in _names(folder) if name not in listed]
    return f"{[*wrong, *unlisted][0]} is not as it was written" if wrong or unlisted else None


def _names(folder: Path) -> list[str]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(name for name in names if name != LIST)
