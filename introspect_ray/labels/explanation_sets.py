"""M0's explanations of the held-out cases, <cache_dir>/explanations/*.parquet, in a local folder or on S3.

The name is a hash of everything that decides them, as of label sets: runs on one cache ask M0 for them once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence

import pyarrow as pa

from introspect_ray.cases import table_file
from introspect_ray.config import RolloutConfig
from introspect_ray.labels.label_sets import made_by
from introspect_ray.records import TokenizedCase
from introspect_ray.storage import open_store

Tokens = tuple[int, ...]
_KEY = b"key"  # in the metadata: the name that the set was given
_COLUMN = pa.field("tokens", pa.list_(pa.int32()), nullable=False)
_log = logging.getLogger(__name__)


def explanation_set_key(
    policy_id: str, cases: Iterable[TokenizedCase], rollout: RolloutConfig, max_tokens: int | None
) -> str:
    """The name of a policy's explanations of `cases`. max_tokens: of one that is generated freely; None: they are the
    greedy ones among the valid explanations (eval.decode=trie)."""
    head = {"format": 1, "max_tokens": max_tokens, **made_by(policy_id, rollout)}
    digest = hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=16)
    for case in cases:
        valid = [[*explanation, tokens] for explanation, tokens in case.explanations.items()]
        digest.update(json.dumps([case.case_id, case.question, valid if max_tokens is None else []]).encode() + b"\n")
    return digest.hexdigest()


def load_explanations(uri: str, key: str) -> list[Tokens] | None:
    """The explanations `key` of the cache at `uri`, in the order of the cases, without their end of turn; None if they
    are not there, or damaged, which a warning says: then they are to be made and saved again."""
    store, name = open_store(uri), _name(key)
    try:
        table = table_file.from_bytes(store.read_bytes(name), [_COLUMN.name])
        if (table.schema.metadata or {}).get(_KEY) != key.encode():
            raise ValueError("it is another set under this name")
        return [tuple(tokens) for tokens in table[_COLUMN.name].to_pylist()]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        _log.warning("the explanations %s are damaged (%s): they are not used", store.join(name), error)
        return None


def save_explanations(uri: str, key: str, said: Sequence[Tokens]) -> None:
    """Write explanations, atomically. Several writers of one key write the same content, so the last one may win."""
    column = pa.array([list(tokens) for tokens in said], _COLUMN.type)
    table = pa.Table.from_arrays([column], schema=pa.schema([_COLUMN], metadata={_KEY: key}))
    open_store(uri).write_bytes(_name(key), table_file.to_bytes(table))


def _name(key: str) -> str:
    return f"explanations/{key}.parquet"
