"""What a run and its resumption must share: the config, but for what may differ, and the content behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from introspect_ray.config import RunConfig, flatten
from introspect_ray.errors import UserError
from introspect_ray.labels.reading import RAW, Reading
from introspect_ray.records import TokenizedCase
from introspect_ray.runs.preflight import Prepared
from introspect_ray.storage import open_store

# Keys that may differ between a run and its resumption: they do not change what it computes.
_FREE = (
    "output_dir",
    "ray_address",
    "wait_for_nodes",
    "stop_within_s",
    "sweep",
    "eval.every",
    "eval.interim_cases",
    "tracking",
    "cache_dir",
    "patience_s",
    "train.max_failures",
    "train.checkpoint_every",
    "train.activation_checkpointing",
    "alarms",
    *(
        f"{judge}.{key}"
        for judge in ("judge", "judge.second")
        for key in ("parallel", "timeout_s", "patience_s", "key_env")
    ),
    "judge.max_unjudged",
    "rollout.weight_transfer",
    "rollout.probe_tolerance",
    "rollout.probe_tokens",
)


def check_resume(cfg: RunConfig) -> None:
    """Refuse to resume a run of another config; an empty folder is fine. Raises UserError naming the first key that
    differs."""
    store = open_store(cfg.output_dir)
    if not store.exists("run.json"):
        return
    before, now = flatten(store.read_json("run.json")), flatten(cfg.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(_FREE):
            raise UserError(
                f"cannot resume {cfg.output_dir}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; "
                "give the same config, or another output_dir"
            )


def run_identity(cfg: RunConfig, prepared: Prepared, reading: Reading = RAW) -> dict[str, Any]:
    """What a checkpoint must share with a run to be used by it: the config, except for what may differ, and the content
    behind it (policies, training cases, auxiliary texts, judges, calibration). JSON values by name, so that a refusal
    can name the one that differs."""
    config = {key: value for key, value in flatten(cfg.model_dump(mode="json")).items() if not key.startswith(_FREE)}
    content = {
        "policy": prepared.policy_id,
        "reference policy": prepared.reference_id,
        "second policy": prepared.second_id,
        "judge": reading.judge,
        "calibration": reading.calibration.identity if reading.calibration else None,
        "training cases": cases_digest(prepared.train),
        "auxiliary texts": prepared.auxiliary.digest if prepared.auxiliary is not None else None,
    }
    return {**config, **{f"content of {what}": value for what, value in content.items()}}


def cases_digest(cases: Iterable[TokenizedCase]) -> str:
    """16 hexadecimal digits of all that a run reads of its cases: their ids, labels and tokens."""
    digest = hashlib.blake2b(digest_size=8)
    for case in cases:
        line: list[Any] = [case.case_id, case.labels, case.label_tokens, case.prompt, case.ablated, case.question]
        line += [case.max_response, list(case.explanations.values())]
        digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()
