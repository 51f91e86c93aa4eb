"""The benchmarks' pure parts: goals, the table of results, the comparison with it."""

import pytest

from benchmarks.common import Goal, last_object
from benchmarks.run import COLUMNS, discover, make_row, read_table, run_all, verdict, write_table
from benchmarks.sweep_overhead import breakdown


def row(ratio, goal=">= 7", **facts):
    return make_row({"name": "x", "ratio": ratio, "goal": goal, **facts}, "`cmd`", "2026-11-23", "2 cores")


def test_goals():
    assert Goal.parse(">= 7").met(7.0) and not Goal.parse(">= 7").met(6.99)
    assert Goal.parse("<= 1.25").met(1.25) and not Goal.parse("<= 1.25").met(1.26)
    assert Goal.parse(3) == Goal("<=", 3.0) and str(Goal.parse(3)) == "<= 3"
    assert row(5.0, None)["goal"] == "none" and row(5.0, None)["met"] == "-"
    assert verdict(row(6, None), row(5, None)) == "20% WORSE than 5 (2026-11-23)"
    for wrong in ("7", "> 7", ">=7", ">= seven"):
        with pytest.raises(ValueError):
            Goal.parse(wrong)


def test_a_benchmark_with_several_goals_meets_all_or_none():
    pause = {"ratio": 0.6, "goal": "<= 0.5", "met": False}
    assert row(8)["met"] == row(8, also={"pause": pause | {"met": True}})["met"] == "yes"
    missed = row(8, also={"pause": pause})
    assert missed["met"] == "no" and missed["details"] == "also (pause (ratio 0.6, goal <= 0.5, met False))"


def test_worse_is_measured_in_cost():
    """A speed-up of 5 where it was 6 means 20 % more seconds; memory of 1.5 where it was 1.2 is 25 % more."""
    assert Goal(">=", 7).worse_by(5, 6) == pytest.approx(0.2)
    assert Goal("<=", 1).worse_by(1.5, 1.2) == pytest.approx(0.25)
    assert Goal(">=", 7).worse_by(8, 4) == pytest.approx(-0.5)


def test_verdict_names_what_is_over_ten_per_cent():
    assert verdict(row(5), None) == "new"
    assert verdict(row(5), row(6)) == "20% WORSE than 6 (2026-11-23)"
    assert verdict(row(5.5), row(6)) == "as before"  # 9 %
    assert verdict(row(12), row(6)) == "50% better than 6 (2026-11-23)"
    assert verdict(row(1.5, "<= 1.25"), row(1.2, "<= 1.25")).startswith("25% WORSE")


def test_verdict_says_where_another_machine_was_measured():
    other = row(6) | {"machine": "4 cores"}
    assert verdict(row(5), other) == "20% WORSE than 6 (2026-11-23, another machine)"


@pytest.mark.parametrize("ratio", [None, float("nan"), float("inf"), 0.0])
def test_what_cannot_be_compared_is_no_result(ratio):
    with pytest.raises(ValueError, match="no positive number"):
        row(ratio)


def test_a_failing_benchmark_does_not_stop_the_others():
    assert run_all(["not_there", "not_there_either"], small=True) == ({}, ["not_there", "not_there_either"])


def test_table_comes_back_as_it_was():
    rows = {"x": row(7.123456, usual_s=1.5, seconds=[1, 2], organism={"ratio": 2.0}, note="a|b")}
    assert rows["x"]["ratio"] == "7.123" and rows["x"]["met"] == "yes"
    assert rows["x"]["details"] == "usual_s 1.5, seconds [1, 2], organism (ratio 2.0), note a|b"
    text = f"# Results\n\nSome | text.\n\n{write_table(rows)}"
    rows["x"]["details"] = rows["x"]["details"].replace("|", "/")
    assert read_table(text) == rows
    assert read_table("# Results\n") == {}
    with pytest.raises(ValueError, match=f"a row of 2 cells in a table of {len(COLUMNS)}"):
        read_table("| a | b |\n")


def test_what_a_sweep_adds_to_a_trial():
    """Two trials in 20 s, each 10: own steps and evaluation 5, so the ratio is 2; outside its MLflow run 1."""
    parts = {"steps": 4.0, "eval": 1.0, "tracking": 0.5, "whole": 9.0, "learner": 1.0, "export": 0.25, "ray_train": 2.0}
    ratio, mean = breakdown([parts | {"learner": 0.5}, parts | {"learner": 1.5}], 20.0)
    assert ratio == 2.0
    assert mean.pop("rest") == pytest.approx(10 - 5 - 1 - 0.5 - 1 - 0.25 - 2)
    assert mean == {"own": 5.0, "tune": 1.0, "tracking": 0.5, "learner": 1.0, "export": 0.25, "ray_train": 2.0}


def test_last_object():
    assert last_object('progress 3\n{"ratio": 2}\n') == {"ratio": 2}
    for wrong in ("", "no result", "[1]", '{"ratio": 2}\ndone'):
        with pytest.raises(ValueError, match="last line"):
            last_object(wrong)


def test_benchmarks_are_found_by_file():
    assert {"train_step", "step_baselines", "scaling", "startup", "rollouts", "memory"} <= set(discover())
    assert not {"run", "common", "__init__", "trl_trainer", "training_loops", "structure"} & set(discover())
