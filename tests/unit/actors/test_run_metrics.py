"""The metrics of a run by name, and the Grafana dashboard that draws them."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from introspect_ray.actors.metrics import METRICS, checkpoint_values, idle_share, run_name, step_values
from introspect_ray.records import StepMetrics
from introspect_ray.storage.checkpoints import Saved

DASHBOARD = json.loads((Path(__file__).parents[3] / "cluster" / "grafana.json").read_text())
COLUMNS = 24  # of Grafana's grid


def step(**known: Any) -> StepMetrics:
    return replace(StepMetrics(*[None] * len(fields(StepMetrics))), **known)


def test_of_a_step_of_four_seconds_with_one_second_of_waiting():
    row = step(
        step=7, loss=0.5, explanation_self=0.75, explanation_orig=0.25, lag=1, step_s=4.0, trainer_idle_s=1.0,
        realised_at_labelling=0.9,
    )  # fmt: skip
    assert step_values(row) == {
        "introspect_step": 7,
        "introspect_step_seconds": 4.0,
        "introspect_loss": 0.5,
        "introspect_self": 0.75,
        "introspect_orig": 0.25,
        "introspect_lag": 1,
        "introspect_agreement": 0.9,
        "introspect_trainer_idle_share": 0.25,
    }


def test_idle_shares():
    assert idle_share(1.0, 3.0) == 0.25 and idle_share(0.0, 2.0) == 0.0
    assert idle_share(0.0, 0.0) is None  # no rollouts: fixed labels


def test_what_is_recorded_has_a_name_that_is_known():
    """The rest is recorded one by one, by its literal name."""
    recorded = {*step_values(step(step_s=1.0, trainer_idle_s=0.0)), *checkpoint_values(Saved(4, 0, 10, 0.5, 2.0))}
    source = Path(__file__).parents[3] / "introspect_ray" / "actors"
    for module in ("relabeler.py", "supply.py"):
        recorded |= set(re.findall(r'"(introspect_\w+)":', (source / module).read_text()))
    assert recorded == set(METRICS)


def test_a_run_is_named_by_its_folder():
    assert run_name("/x/sweep/kl_weight=1/") == "kl_weight=1" and run_name("s3://bucket/a/b") == "b"


# --- the dashboard ------------------------------------------------------------------------------------------------


def queries() -> list[str]:
    variables = [one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return [*variables, *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])]


def test_its_queries_name_exactly_our_metrics_as_ray_exports_them():
    named = {name for query in queries() for name in re.findall(r"\bray_(\w+)", query)}
    exported = {name if metric.kind == "gauge" else f"{name}_bucket" for name, metric in METRICS.items()}
    assert named == exported


def test_its_panels_have_ids_and_places_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells


def test_its_queries_are_complete_and_use_defined_variables():
    defined = {one["name"] for one in DASHBOARD["templating"]["list"]}
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in DASHBOARD["panels"]:
        refs = [target["refId"] for target in panel["targets"]]
        assert panel["datasource"] == source and len(set(refs)) == len(refs) > 0
        for target in panel["targets"]:
            assert target["datasource"] == source and target["legendFormat"]
    for query in queries():
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
        used = set(re.findall(r"\$(?!__)\{?(\w+)", query))
        assert used <= defined, query


def test_its_frame_is_that_of_a_dashboard():
    """The keys that Grafana reads at the top, of the types of its schema; checked once with grafana-foundation-sdk."""
    kinds = {"uid": str, "title": str, "schemaVersion": int, "panels": list, "time": dict, "templating": dict}
    assert {name: type(DASHBOARD[name]) for name in kinds} == kinds
    assert {panel["type"] for panel in DASHBOARD["panels"]} == {"timeseries"}
    units = {panel["fieldConfig"]["defaults"]["unit"] for panel in DASHBOARD["panels"]}
    assert units <= {"short", "s", "percentunit", "bytes"}  # ids of Grafana's units; another shows the bare number


@pytest.mark.parametrize("name", METRICS)
def test_names_are_prometheus_names_with_their_unit(name):
    assert re.fullmatch(r"introspect_[a-z_]+", name) and METRICS[name].meaning
    assert (METRICS[name].kind == "histogram") <= name.endswith("_seconds")
