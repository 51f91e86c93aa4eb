"""What the judges made of a label set, in the cache beside it: <cache_dir>/pairs/<key>.judges.json, with a checksum."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from introspect_ray.errors import one_line
from introspect_ray.judges import JudgeReport
from introspect_ray.storage import open_store


def load_report(uri: str, key: str) -> JudgeReport | None:
    """What the judges made of the label set `key` when it was made; None for closed labels. Raises ValueError for a
    damaged report, whose label set is to be made again with it."""
    store, name = open_store(uri), _name(key)
    try:
        found = json.loads(store.read_bytes(name))
        if "report" in found or "blake2b" in found:  # version 0.3 and before wrote the report alone
            if found["blake2b"] != _digest(found["report"]):
                raise ValueError("another checksum than was written")
            found = found["report"]
        return JudgeReport.from_summary(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{store.join(name)} is damaged ({one_line(error)})") from None


def save_report(uri: str, key: str, report: JudgeReport) -> None:
    """Write the judges' report on a label set. Write it before the set: one without a report is of closed labels."""
    summary = report.summary()
    open_store(uri).write_json(_name(key), {"report": summary, "blake2b": _digest(summary)})


def _digest(summary: Any) -> str:
    return hashlib.blake2b(json.dumps(summary, sort_keys=True).encode(), digest_size=16).hexdigest()


def _name(key: str) -> str:
    return f"pairs/{key}.judges.json"
