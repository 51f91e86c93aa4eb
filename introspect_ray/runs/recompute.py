"""evaluate --from FOLDER: the metrics of finished evaluations from their tables alone, without policies or engines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from introspect_ray.cli import Arguments
from introspect_ray.errors import UserError
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED, UNTRAINED, read_parquet, recompute
from introspect_ray.scores.inspect_log import check_inspect
from introspect_ray.storage import Store, open_store

# Tables by what they hold, with the file beside them whose metrics were made from them.
TABLES = {TRAINED: "summary.json", EVALUATED: "evaluation.json", UNTRAINED: None}


def recompute_job(args: Arguments) -> bool:
    """Print the metrics of all tables in a folder; returns whether they equal those of the files beside them.

    With --inspect FILE the cases of the first table (in the order of TABLES) are also written to a log of Inspect AI.
    Raises UserError for other arguments, a folder without a table, a table that cannot be read, and a log that cannot
    be written.
    """
    log = args.flags.get("inspect")
    if args.flags["from"] is None:
        raise UserError("--inspect writes the cases of a finished run or evaluation: add --from FOLDER")
    if log is not None:
        check_inspect(log)
    if args.overrides or args.config or args.resume or args.overwrite or args.dry_run:
        raise UserError(
            "evaluate --from FOLDER takes no other argument than --inspect: its metrics need nothing but the folder"
        )
    store = open_store(str(args.flags["from"]))
    found = [name for name in TABLES if store.exists(name)]
    if not found:
        raise UserError(
            f"{store.join()} holds no table of evaluated cases ({', '.join(TABLES)}): give the output_dir of a run, "
            "of a sweep's trial (trials/NAME) or of an evaluation that wrote one"
        )
    verdicts: list[str] = []
    same = True
    for name in found:
        metrics = metrics_of(store, name)
        print(json.dumps({"table": name, **metrics}, indent=2, ensure_ascii=False))
        beside = TABLES[name]
        if beside is None or not store.exists(beside):
            continue
        lines = list(differences(metrics, store.read_json(beside)))
        verdicts += [f"DIFFERS  {line}" for line in lines] or [f"equal    {store.join(beside)}"]
        same = same and not lines
    print(
        "\n".join(verdicts or ["compared with nothing: there is no summary.json or evaluation.json beside the tables"])
    )
    if log is not None:
        from introspect_ray.runs.evaluation_log import log_evaluation  # reads tasks, which metrics do not need

        log_evaluation(store, found[0], Path(log))
    return same


def metrics_of(store: Store, name: str) -> dict[str, Any]:
    """The metrics of one table. Raises UserError if it is damaged."""
    try:
        return recompute(read_parquet(store.read_bytes(name)))
    except ValueError as error:
        raise UserError(f"{store.join(name)}: {error}") from None


def differences(metrics: Mapping[str, Any], beside: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each recomputed value that another file states otherwise, or does not state.

    Numbers must be equal to the last digit. summary.json counts its cases by side, and has no "against" of its own.
    """
    for key, value in metrics.items():
        name, other = f"{prefix}{key}", beside.get(key)
        if name == "cases" and isinstance(other, Mapping):
            other = other.get("test")
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from differences(value, other, f"{name}.")
            yield from (f"{name}.{more}: the table does not give it" for more in other if more not in value)
        elif value != other and not (name == "against" and not value):
            yield f"{name}: the table gives {value!r}, the file has {other!r}"
