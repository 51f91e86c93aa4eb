"""From run folders to files, verdicts and the page, without engines: tables of cases by hand stand for runs."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from introspect_ray.experiments.catalogue import EXPERIMENTS
from introspect_ray.experiments.claims import HOLDS, NOT_RUN, Claim
from introspect_ray.experiments.plan import plan
from introspect_ray.experiments.report import Page, page
from introspect_ray.experiments.results import Judging, collect, section
from introspect_ray.experiments.settings import load_settings
from introspect_ray.records import Explanation
from introspect_ray.scores.evaluation import evaluate
from introspect_ray.scores.evaluation_table import TRAINED, UNTRAINED, to_parquet, to_table
from introspect_ray.storage import open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "scores"))
from evaluated import cases

CLAIM = Claim("fig4-rises", "fig4", "It rises.", "gap at 1 minus gap at 0", "above", 0.0, ("bundled",), (0, 1))
JUDGING = Judging([CLAIM], {"fig4-rises": "1234567 2026-01-01"}, True)


@pytest.fixture
def two_values(tmp_path):
    """Figure 4 with λ = 0 and 1 and seeds 0 and 1, as a plan."""
    settings = load_settings()
    settings = replace(settings, values={**settings.values, "kl_weight": (0.0, 1.0)})
    return plan(EXPERIMENTS["fig4"].studies(settings), settings, tmp_path)


def finish(one) -> None:
    """λ = 1: explanations are E(M), which is not E(M0); λ = 0: they are E(M0). Twenty cases, each a question."""
    stated = Explanation(True, "A") if one.cfg.kl_weight else Explanation(False, "C")
    made = cases("BA " * 20, "CC " * 20, [stated] * 20)
    store = open_store(one.cfg.output_dir)
    store.write_bytes(TRAINED, to_parquet(to_table(made)))
    store.write_bytes(UNTRAINED, to_parquet(to_table(cases("CC " * 20, "CC " * 20, [None] * 20))))
    store.write_json("summary.json", {**evaluate(made), "timing_s": {"total": 9.0, "setup": 4.0}})


def test_finished_runs_become_files_and_a_verdict(tmp_path, two_values):
    """The gap is 1 at λ = 1 and -1 at λ = 0: it rises by 2 in every case, so the interval has no width."""
    for one in two_values:
        finish(one)
    found = section(EXPERIMENTS["fig4"], two_values, tmp_path, JUDGING)
    (judged,) = found.judged
    assert judged.verdict.word == HOLDS and judged.measured[:3] == pytest.approx((2.0, 2.0, 2.0))
    assert (found.runs, found.seconds) == (4, 20.0)
    rows = json.loads((tmp_path / "fig4" / "rows.json").read_text())
    assert [(row["kl_weight"], row["gap_em"], row["seeds"]) for row in rows] == [(0.0, -1.0, 2), (1.0, 1.0, 2)]
    assert pq.read_table(tmp_path / "fig4" / "rows.parquet").to_pylist() == rows
    assert (tmp_path / "fig4" / "figure.png").read_bytes() == found.png
    assert b"<svg" in (tmp_path / "fig4" / "figure.svg").read_bytes()
    text = page(Page({"commit": "abc"}, {"runs": 20.0}, [found]))
    assert "1234567 2026-01-01" in text and "+2.000 [+2.000, +2.000] is above 0" in text
    assert not re.search(r"(src|href)='(?!data:|#)", text)  # nothing that a network is needed for


def test_without_its_runs_a_claim_is_not_run(tmp_path, two_values):
    empty = section(EXPERIMENTS["fig4"], two_values, tmp_path, JUDGING)
    assert empty.judged[0].verdict.word == NOT_RUN and empty.state == "Not run: 4 of its 4 runs are missing."
    for one in two_values[:3]:
        finish(one)
    partly = section(EXPERIMENTS["fig4"], two_values, tmp_path, JUDGING)
    assert partly.judged[0].verdict.word == NOT_RUN and "1 of 4 runs are missing" in partly.notes


def test_a_run_that_an_alarm_stopped_is_a_result_with_its_reason(tmp_path, two_values):
    for one in two_values[1:]:
        finish(one)
    open_store(two_values[0].cfg.output_dir).write_json("failed.json", {"failed": "training diverged"})
    assert [run.failed for run in collect(two_values)] == ["training diverged", None, None, None]
    found = section(EXPERIMENTS["fig4"], two_values, tmp_path, JUDGING)
    assert any("training diverged" in note for note in found.notes)
    assert found.judged[0].verdict.word == NOT_RUN  # one of the runs that it names has no number
