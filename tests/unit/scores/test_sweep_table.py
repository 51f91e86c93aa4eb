"""The printed table, to the letter."""

import pytest
from summaries import point, summary

from introspect_ray.scores.table import swept_values, table


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_table_by_hand():
    """λ = 0: Self .40 .42 (mean 41.0, sd 1.4), Orig .30 .32. The gaps and their intervals are those of the points.
    λ = 1: one seed, no spread."""
    rows = [summary(0.0, 0.40, 0.30, seed=0), summary(0.0, 0.42, 0.32, seed=1), summary(1.0, 0.6, 0.7, 0.75)]
    even = (0.1, 0.05, 0.15)
    points = [
        point(0.0, em=even, content=(0.1, -0.0021, 0.2), changed_accuracy=(-0.11, -0.2, -0.1)),
        point(1.0, em=(-0.1, -0.2, 0.0), content=even, changed_accuracy=even),
    ]
    lines = table(rows, "kl_weight", points=points).split("\n")
    assert cells(lines[0]) == [
        "kl_weight", "seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %",
    ]  # fmt: skip
    assert cells(lines[1]) == [
        "0", "2", "41.0±1.4", "31.0±1.4", "+10.0 [+5.0,+15.0]", "+10.0 [-0.2,+20.0]", "-11.0 [-20.0,-10.0]", "70.0±0.0",
    ]  # fmt: skip
    assert cells(lines[2])[2:5] == ["60.0", "70.0", "-10.0 [-20.0,+0.0]"] and cells(lines[2])[-1] == "75.0"
    assert lines[3:] == ["±: standard deviation over seeds; [ ]: 95 % interval"]
    assert len({len(line) for line in lines[:3]}) == 1 and len(lines[0]) < 115


def test_a_single_run_shows_the_interval_of_its_summary():
    gaps = {part: {"value": 0.1, "ci": [0.04, 0.16]} for part in ("em", "content", "changed_accuracy")}
    lines = table([summary(1.0, 0.5, 0.4) | {"gap": gaps}], "kl_weight").split("\n")
    assert cells(lines[1])[4:7] == ["+10.0 [+4.0,+16.0]"] * 3
    assert lines[2:] == ["[ ]: 95 % interval over the cases of the run, clustered by question"]


def test_seeds_without_points_show_the_paired_t():
    """Gaps .10 .10 .13: mean .11, sd .0173205, ± 4.302653 · .0173205 / sqrt 3 = .043027."""
    rows = [summary(1.0, own, orig, seed=k) for k, (own, orig) in enumerate(((0.5, 0.4), (0.6, 0.5), (0.53, 0.4)))]
    lines = table(rows, "kl_weight").split("\n")
    assert cells(lines[1])[4] == "+11.0 [+6.7,+15.3]" and lines[2].endswith("[ ]: 95 % t interval over 3 seeds")


def test_shares_of_unusable_explanations_and_answers_are_shown_when_they_are_not_small():
    """2 % is small, 2.5 % in any run is not: then both shares of all values are shown, below the table."""

    def run(value: float, unparsed: float, off: float) -> dict:
        one = summary(value, 0.5, 0.5)
        one["explanation"]["self"]["unparsed"], one["behavior"]["off_format"] = unparsed, off
        return one

    assert "unparsed" not in table([run(0.0, 0.02, 0.02)], "kl_weight")
    for faulty in (run(1.0, 0.025, 0.0), run(1.0, 0.0, 0.025)):
        lines = table([run(0.0, 0.0, 0.01), faulty], "kl_weight").split("\n")
        assert cells(lines[-3]) == ["kl_weight", "unparsed %", "off format %"]
        assert cells(lines[-2]) == ["0", "0.00", "1.00"] and "2.50" in cells(lines[-1])


def test_a_table_over_agreement_shows_what_was_realised():
    """ν = .8 with realised .79 and .81 at labelling: 80.00, sd .01 * sqrt(2) = 1.41 points."""
    rows = [
        summary(0.8, 0.5, 0.5, seed=k) | {"labels": {"realised_at_labelling": at, "realised_at_consumption": 0.7}}
        for k, at in enumerate((0.79, 0.81))
    ]
    head, row = map(cells, table(rows, "supervision.agreement").split("\n")[-2:])
    assert head == ["agreement", "realised %", "at use %"] and row == ["0.8", "80.00±1.41", "70.00±0.00"]


def test_a_table_of_summaries_from_before_changed_accuracy():
    """Trials that an earlier version finished have no changed_accuracy: that cell says so, the others are there."""
    old = summary(0.0, 0.40, 0.30)
    del old["explanation"]["self"]["changed_accuracy"], old["explanation"]["orig"]["changed_accuracy"]
    assert table([old], "kl_weight").splitlines()[1].split()[4:7] == ["+10.0", "+10.0", "n/a"]
    assert len(table([old], "kl_weight").splitlines()) == 2  # no interval, so nothing to say of one


def test_a_table_over_agreement_of_runs_without_steps():
    """steps=0 makes no label, so nothing was realised; the scores are those of M0."""
    rows = [summary(0.8, 0.5, 0.5) | {"labels": {"realised_at_labelling": None, "realised_at_consumption": None}}]
    assert table(rows, "agreement").splitlines()[-1].split() == ["0.8", "n/a", "n/a"]


def test_a_key_that_summaries_do_not_hold_needs_values():
    two = [summary(1.0, 0.5, 0.5)] * 2
    with pytest.raises(ValueError, match="learning_rate"):
        swept_values(two, "learning_rate")
    with pytest.raises(ValueError, match="1 values of learning_rate for 2 summaries"):
        swept_values(two, "learning_rate", [1e-3])
