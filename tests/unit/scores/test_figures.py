"""Figures show the right data in the right place; tables are checked to the letter."""

import matplotlib.figure
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from introspect_ray.scores.figures import ORIG, SELF, smooth, sweep_figure, swept_values, table, training_figure


def summary(value, own, orig, behavior=0.7, seed=0, content=(0.8, 0.7), changed=(0.6, 0.7)):
    """content, changed: (Self, Orig)."""
    (own_content, orig_content), (own_changed, orig_changed) = content, changed
    return {
        "task": "organism", "policy": "organism", "seed": seed, "steps": 10, "kl_weight": value,
        "supervision": {"agreement": value},
        "explanation": {
            "self": {"em": own, "content": own_content, "changed_accuracy": own_changed},
            "orig": {"em": orig, "content": orig_content, "changed_accuracy": orig_changed},
        },
        "behavior": {"em": behavior, "cued": behavior + 0.1, "ablated": behavior + 0.2},
    }  # fmt: skip


SWEEP = [summary(v, s + 0.01 * k, 0.5, seed=k) for v, s in ((1.0, 0.6), (0.0, 0.4), (0.01, 0.5)) for k in (0, 1, 2)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during a test."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def test_sweep_figure_draws_self_in_blue_and_orig_in_orange(tmp_path, drawn):
    """Means over three seeds, sorted by λ with 0 on the axis: Self 41, 51, 61 %, Orig 50 % throughout. Values in file
    order would draw a zigzag; a log axis would lose λ = 0."""
    sweep_figure(SWEEP, "kl_weight", tmp_path / "sweep.png", untrained=0.16)
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000
    left, right = drawn[0].axes
    lines = {to_hex(line.get_color()): line for line in right.lines}
    assert list(lines[SELF].get_xdata()) == [0, 0.01, 1] and lines[SELF].get_ydata() == pytest.approx([41, 51, 61])
    assert lines[ORIG].get_ydata() == pytest.approx([50, 50, 50])
    assert right.get_xscale() == "symlog" and [t.get_text() for t in right.get_xticklabels()] == ["0", "0.01", "1"]
    assert left.lines[0].get_ydata() == pytest.approx([70, 70, 70]) and len(left.lines) == 3
    dots = max(right.collections, key=lambda c: len(c.get_offsets()))
    assert len(dots.get_offsets()) == 9  # every seed is seen
    assert "M0, untrained" in [t.get_text() for t in right.get_legend().get_texts()]


@pytest.mark.parametrize(
    "key,values,scale",
    [
        ("supervision.agreement", None, "linear"),
        ("agreement", None, "linear"),
        ("learning_rate", [1e-4, 1e-3], "log"),
        ("lora_rank", [32, 64], "log"),
    ],
)
def test_axis_scales(tmp_path, drawn, key, values, scale):
    sweep_figure([summary(0.4, 0.5, 0.5), summary(0.8, 0.6, 0.5)], key, tmp_path / "s.png", "Title", values=values)
    assert drawn[0].axes[0].get_xscale() == scale and drawn[0].get_suptitle() == "Title"


@pytest.mark.parametrize("seeds", [1, 4])
def test_one_value_alone_can_be_drawn(tmp_path, seeds):
    sweep_figure([summary(1.0, 0.5, 0.5, seed=k) for k in range(seeds)], "kl_weight", tmp_path / "deep" / "s.png")
    assert (tmp_path / "deep" / "s.png").stat().st_size > 10_000


def test_a_key_that_summaries_do_not_hold_needs_values():
    with pytest.raises(ValueError, match="learning_rate"):
        swept_values(SWEEP, "learning_rate")
    with pytest.raises(ValueError, match="2 values of learning_rate for 9 summaries"):
        swept_values(SWEEP, "learning_rate", [1e-3, 1e-4])
    with pytest.raises(ValueError, match="no summaries"):
        sweep_figure([], "kl_weight", "never.png")


def test_table_by_hand():
    """λ = 0: Self .40 .42 (mean 41.0, sd 1.4), Orig .30 .32; the gap is +10.0 in both seeds, so its sd is 0:
    subtracting the scores' spreads would say ±2.0. Its parts: content .8 - .7, *changed?* .6 - .7 and .6 - .72.
    λ = 1: one seed, no spread."""
    rows = [
        summary(0.0, 0.40, 0.30, seed=0),
        summary(0.0, 0.42, 0.32, seed=1, changed=(0.6, 0.72)),
        summary(1.0, 0.6, 0.7, 0.75),
    ]
    lines = [line.split("  ") for line in table(rows, "kl_weight").split("\n")]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == [
        "kl_weight", "seeds", "Self %", "Orig %", "gap (points)", "content", "changed?", "Behavior %",
    ]  # fmt: skip
    assert cells[1] == ["0", "2", "41.0±1.4", "31.0±1.4", "+10.0±0.0", "+10.0±0.0", "-11.0±1.4", "70.0±0.0"]
    assert cells[2] == ["1", "1", "60.0", "70.0", "-10.0", "+10.0", "-10.0", "75.0"]
    assert len({len(line) for line in table(rows, "kl_weight").split("\n")}) == 1


def test_a_table_over_agreement_shows_what_was_realised():
    """ν = .8 with realised .79 and .81 at labelling: 80.00, sd .01 * sqrt(2) = 1.41 points. No table is
    wider."""
    rows = [
        summary(0.8, 0.5, 0.5, seed=k) | {"labels": {"realised_at_labelling": at, "realised_at_consumption": 0.7}}
        for k, at in enumerate((0.79, 0.81))
    ]
    lines = table(rows, "supervision.agreement").split("\n")
    head, row = ([cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines)
    assert head[:4] == ["agreement", "realised %", "at use %", "seeds"]
    assert row[:4] == ["0.8", "80.00±1.41", "70.00±0.00", "2"]
    assert max(map(len, lines)) < 110


def test_a_table_of_summaries_from_before_changed_accuracy():
    """Trials that an earlier version finished have no changed_accuracy: that cell says so, the others are there."""
    old = summary(0.0, 0.40, 0.30)
    del old["explanation"]["self"]["changed_accuracy"], old["explanation"]["orig"]["changed_accuracy"]
    assert table([old], "kl_weight").splitlines()[1].split()[4:7] == ["+10.0", "+10.0", "n/a"]


def test_a_table_over_agreement_of_runs_without_steps():
    """steps=0 makes no label, so nothing was realised; the scores are those of M0."""
    rows = [summary(0.8, 0.5, 0.5) | {"labels": {"realised_at_labelling": None, "realised_at_consumption": None}}]
    assert table(rows, "agreement").splitlines()[1].split()[:3] == ["0.8", "n/a", "n/a"]


def test_smooth_by_hand():
    """Weight 1/2 on 0, 1, 1: 0; 1/1.5; 1.5/1.75. A biased average would start from 0 whatever the first value."""
    assert smooth([0, 1, 1], 0.5) == pytest.approx([0, 2 / 3, 6 / 7])
    assert smooth([0.8, 0.8], 0.9) == pytest.approx([0.8, 0.8])


def test_training_figure_leaves_out_fields_that_are_null(tmp_path, drawn):
    fields = (
        "loss", "cross_entropy", "kl", "explanation_self", "explanation_orig", "behavior_em", "realised_at_consumption",
    )  # fmt: skip
    rows = [{"step": t, **dict.fromkeys(fields, 0.5), "requested_agreement": None} for t in range(5)]
    training_figure(rows, tmp_path / "t.png")
    objective, explanations, behavior, agreement = drawn[0].axes
    assert [t.get_text() for t in agreement.get_legend().get_texts()] == ["realised, at consumption"]
    assert explanations.get_title() == "(b) Self and Orig while training, among valid explanations (%)"
    assert len(explanations.lines) == 4 and explanations.lines[1].get_ydata() == pytest.approx([50] * 5)
    assert objective.lines[1].get_ydata() == pytest.approx([0.5] * 5) and len(behavior.lines) == 2
    with pytest.raises(ValueError, match="no rows"):
        training_figure([], tmp_path / "t.png")
