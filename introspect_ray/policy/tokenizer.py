"""The tokenizer of a policy folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from introspect_ray.errors import UserError
from introspect_ray.policy.files import read_object


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a policy folder. Raises UserError if it cannot be read."""
    try:
        tokenizer = _tokenizer_class(path).from_pretrained(path, trust_remote_code=False)
        tokenizer("a text"), tokenizer.eos_token_id, tokenizer.all_special_ids  # some settings are looked at only now
        return tokenizer
    except UserError:
        raise
    except Exception as error:  # the library raises what its files make of them, the bare Exception among them
        raise UserError(
            f"policy {path!r}: its tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _tokenizer_class(path: str) -> Any:
    """The class that AutoTokenizer would choose.

    AutoTokenizer imports torch and scikit-learn before it chooses (4 CPU seconds). A folder saved by transformers 5
    names TokenizersBackend, which needs neither, so AutoTokenizer is not asked.
    """
    config = Path(path) / "tokenizer_config.json"
    saved = read_object(config) if config.is_file() else {}
    if saved.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in saved:
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer
