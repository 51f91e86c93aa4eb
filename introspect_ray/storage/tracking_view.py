"""What MLflow 3 shows of an experiment when it is opened: experiment tags that its pages read. Pure.

mlflow.experimentKind says that an experiment trains models. MLflow 3.17 goes by the switch in its sidebar nonetheless,
which in a new browser stands at applications of language models, unless a link sets it. And the run table has no column
of a metric or a parameter unless its reader chooses some or opens a saved view: an experiment tag with the state of the
page, which MLflow lists under "Views". So the experiment's description, which stands above all its pages, has links
that set the switch and open the view.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

KIND = "mlflow.experimentKind"
NOTE = "mlflow.note.content"
VIEW = "mlflow.sharedViewState."
_TRAINING = "custom_model_development"
_GUESSED = ("", "no_inferred_type", "genai_development_inferred", "custom_model_development_inferred")
_SHOWN = (
    "gap.em",
    "gap_ci.em_low",
    "gap_ci.em_high",
    "gap.content",
    "gap.changed",
    "test.self.em",
    "test.orig.em",
    "test.behavior.em",
)
_LEAD = "Saved views of the runs, best gap first: "


def experiment_tags(experiment_id: str, tags: Mapping[str, str], keys: Sequence[str], now_ms: int) -> dict[str, str]:
    """The tags to set on an experiment that has `tags`: its kind, a saved view with columns for the swept `keys`, and a
    description that links to all such views. What a person chose or wrote there is left alone."""
    found: dict[str, str] = {}
    if tags.get(KIND, "") in _GUESSED:
        found[KIND] = _TRAINING
    tag = VIEW + view_id(keys)
    if tag not in tags:
        state = json.dumps(_state(keys))
        found[tag] = json.dumps({"name": view_id(keys).replace("-", " "), "createdAt": now_ms, "state": state})
    note = tags.get(NOTE, "")
    if not note or note.startswith(_LEAD):
        found[NOTE] = _LEAD + ", ".join(_links(experiment_id, {**tags, **found}))
    return {key: value for key, value in found.items() if tags.get(key) != value}


def view_id(keys: Sequence[str]) -> str:
    """Example: "gap-by-kl_weight-learning_rate", shown as "gap by kl_weight learning_rate"; of no keys "gap"."""
    return "-".join(["gap", *(["by", *keys] if keys else [])])


def view_path(experiment_id: str, view: str) -> str:
    """Where a server shows a view, from its root."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning"


def page_of(uri: str, experiment_id: str, keys: Sequence[str]) -> str:
    """Where to look at the view of the swept `keys`; where no server runs yet, how to start one comes first."""
    path, served = view_path(experiment_id, view_id(keys)), uri.startswith("http")
    start = "" if served else f"mlflow server --backend-store-uri {shlex.quote(uri)}; then "
    return f"{start}{uri.rstrip('/') if served else 'http://127.0.0.1:5000'}/{path}"


def _links(experiment_id: str, tags: Mapping[str, str]) -> list[str]:
    """A link to each view whose name is as of `view_id`; people's own have random names."""
    own = sorted(key.removeprefix(VIEW) for key in tags if key.startswith(VIEW + view_id([])))
    return [f"[{view.replace('-', ' ')}]({view_path(experiment_id, view)})" for view in own]


def _state(keys: Sequence[str]) -> dict[str, object]:
    """The part of the page's state that a view sets. Sorted by a metric, the table has the children of all sweeps in
    one list; sorted by time it has them folded into their parents."""
    columns = [_column("params", key) for key in (*keys, "seed")]
    columns += [_column("metrics", name) for name in _SHOWN]
    columns += [_column("attributes", "Dataset"), _column("attributes", "Models")]
    return {
        "orderByKey": _column("metrics", _SHOWN[0]),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
    }


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
