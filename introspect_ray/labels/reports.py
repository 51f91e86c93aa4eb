"""What the judges made of a label set, in the cache beside it: <cache_dir>/pairs/<key>.judges.json."""

from __future__ import annotations

from introspect_ray.judges import JudgeReport
from introspect_ray.storage import open_store


def load_report(uri: str, key: str) -> JudgeReport | None:
    """What the judges made of the label set `key` when it was made; None for closed labels."""
    store, name = open_store(uri), _name(key)
    return JudgeReport.from_summary(store.read_json(name)) if store.exists(name) else None


def save_report(uri: str, key: str, report: JudgeReport) -> None:
    """Write the judges' report on a label set. Write it before the set: one without a report is of closed labels."""
    open_store(uri).write_json(_name(key), report.summary())


def _name(key: str) -> str:
    return f"pairs/{key}.judges.json"
