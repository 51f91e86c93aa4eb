"""Whether the weights of a policy folder are those that its config.json describes, looked at before anything starts.

A truncated or damaged file, a tensor that is missing, of another shape or not finite would else show itself in an
actor: transformers fills a missing tensor with random numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspect_ray.errors import UserError, one_line
from introspect_ray.heavy_imports import heavy_imports
from introspect_ray.policy.files import ADAPTER, policy_id, read_object, weight_files

if TYPE_CHECKING:
    import torch

Shapes = dict[str, tuple[int, ...]]
SCANNED_BYTES = (
    1 << 30
)  # of weights that are looked through; of a larger policy so many of the first rows of each tensor
_LEAST_BYTES = 1 << 16  # of each tensor
_SCANNED_TYPES = ("F64", "F32", "F16", "BF16")
_IGNORED = (r"rotary_emb\.inv_freq",)  # a buffer that older checkpoints hold
GENERATION = "generation_config.json"
_MOST_NAMED = 3  # tensors in a message


def stored_shapes(folder: str | Path) -> Shapes:
    """The shapes of all tensors of a policy folder, from the headers of its weight files; no tensor is loaded.

    Raises UserError for a file that is missing, cut short or no safetensors file.
    """
    return {name: shape for reader in _readers(folder) for name, (shape, _) in _header(reader).items()}


def check_weights(path: str, name: str, *, trained: bool) -> None:
    """Refuse a policy folder whose weights are not those of its config.json, or are not finite. Imports torch.

    name: of the policy, in messages. trained: the learner or its reference will load it, which takes no quantised
    weights. Each content is looked at once in a process. Raises UserError.
    """
    problem = _problem(path, policy_id(path), trained)
    if problem:
        raise UserError(f"policy {name!r}: {problem}")


def check_adapter(path: str) -> None:
    """Refuse a PEFT adapter folder whose config or weights cannot be read. Raises UserError."""
    read_object(Path(path, "adapter_config.json"))
    if not Path(path, ADAPTER).is_file():
        raise UserError(f"adapter {path!r} has no {ADAPTER}: save it with save_pretrained")
    for reader in _opened([Path(path, ADAPTER)]):
        _header(reader)


@lru_cache(maxsize=64)
def _problem(path: str, content: str, trained: bool) -> str | None:
    """What is wrong, and the remedy. content: of policy_id, so that changed files are looked at again."""
    try:
        stored = stored_shapes(path)
        config, expected, tied, ignored = _model(path)
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None:
            kind = quantised.get("quant_method", "?") if isinstance(quantised, Mapping) else "?"
            remedy = "training needs plain weights: take the model that it was made from"
            return f"its weights are quantised ({kind}), and {remedy}" if trained else None
        return _difference(stored, expected, tied, ignored) or _not_finite(path)
    except UserError as error:
        return str(error)


def _model(path: str) -> tuple[Any, Shapes, set[str], Sequence[str]]:
    """Of the model that config.json describes: its config, the shapes of its tensors, which of them may be left out as
    they are tied to another, and patterns of what a file may hold besides. Built without memory."""
    with heavy_imports():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            if Path(path, GENERATION).is_file():  # from_pretrained reads it, too
                GenerationConfig.from_pretrained(path)
            with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # on sizes, which are compared below
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # whatever a model's own code makes of a wrong config
            raise UserError(
                f"its config.json and {GENERATION} describe no model that can be loaded ({type(error).__name__}: "
                f"{one_line(error):.200}): correct it, or take another policy (a model's own code is never run)"
            ) from None
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        return config, shapes, tied, [*_IGNORED, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]


def _difference(stored: Shapes, expected: Shapes, tied: set[str], ignored: Sequence[str]) -> str | None:
    """What the files lack, have too much or in another shape, and the remedy."""
    common = stored.keys() & expected.keys()
    if 2 * len(common) < len(expected):
        return _renamed(stored, expected)
    remedy = "the weights are not those of this config.json: copy the whole folder again"
    shapes = [f"{key} {list(stored[key])} instead of {list(expected[key])}" for key in sorted(common)]
    other = [line for line, key in zip(shapes, sorted(common), strict=True) if stored[key] != expected[key]]
    if other:
        return f"{_some(other)} in the weight files: {remedy}"
    if missing := sorted(expected.keys() - stored.keys() - tied):
        return f"the weight files lack {_some(missing)} of {len(expected)} tensors: {remedy}"
    if more := sorted(key for key in stored.keys() - expected.keys() if not any(re.search(p, key) for p in ignored)):
        return f"the weight files have {_some(more)} that config.json does not know: {remedy}"
    return None


def _renamed(stored: Shapes, expected: Shapes) -> str | None:
    """Where files use other names, which transformers may know: there are at least as many numbers as the model has."""
    have, need = (sum(_count(shape) for shape in shapes.values()) for shapes in (stored, expected))
    if 2 * have >= need:
        return None
    return f"its weight files hold {have:,} numbers, its config.json describes {need:,}: copy the whole folder again"


def _count(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _not_finite(path: str) -> str | None:
    """The first tensor with NaN or infinity, in what is looked through."""
    import torch

    size = sum(file.stat().st_size for file in weight_files(path))
    for reader in _readers(path):
        header = _header(reader)
        for name, (shape, kind) in header.items():
            if kind not in _SCANNED_TYPES:
                continue
            tensor = _first_rows(reader, name, shape, size, len(header))
            if tensor.numel() and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                return f"{bad} of {tensor.numel()} numbers of {name} are NaN or infinite: take undamaged weights"
    return None


def _first_rows(reader: Any, name: str, shape: Sequence[int], size: int, tensors: int) -> torch.Tensor:
    """A tensor, or so many of its first rows that the scan of all of them stays within SCANNED_BYTES."""
    if size <= SCANNED_BYTES or len(shape) < 2:
        return reader.get_tensor(name)
    row = 4 * max(1, _count(shape[1:]))
    return reader.get_slice(name)[: max(1, max(_LEAST_BYTES, SCANNED_BYTES // tensors) // row)]


def _readers(folder: str | Path) -> Iterator[Any]:
    """An open reader of each weight file, one after another."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"policy folder {folder} has no *.safetensors: save it with save_pretrained")
    return _opened(files)


def _opened(files: Sequence[Path]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            reader = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({one_line(error):.120})"
            raise UserError(f"{file.name} {what}: the file is incomplete or damaged, copy the folder again") from None
        with reader as opened:
            yield opened


def _header(reader: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) of all tensors of an open file."""
    names = reader.keys()  # a reader itself is not iterable
    slices = {name: reader.get_slice(name) for name in names}
    return {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
