"""Which files of a model folder hold its weights."""

from __future__ import annotations

import json
from pathlib import Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def weight_files(folder: str | Path) -> list[Path]:
    """The *.safetensors that from_pretrained reads, sorted: those of the index, the single file, or else all.

    Repositories may hold the same weights once more under other names (consolidated.safetensors).
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return sorted({folder / name for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    return sorted(folder.glob("*.safetensors"))
