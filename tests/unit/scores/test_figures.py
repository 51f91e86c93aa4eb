"""Figures show the right data in the right place."""

import pytest
from matplotlib.colors import to_hex
from PIL import Image
from summaries import point, summary

from introspect_ray.scores.drawing import BEHAVIOR, ORIG, SELF
from introspect_ray.scores.figures import sweep_figure

SWEEP = [summary(v, s + 0.01 * k, 0.5, seed=k) for v, s in ((1.0, 0.6), (0.0, 0.4), (0.01, 0.5)) for k in (0, 1, 2)]


def test_sweep_figure_draws_self_in_blue_and_orig_in_orange(tmp_path, drawn):
    """Means over three seeds, sorted by λ with 0 on the axis: Self 41, 51, 61 %, Orig 50 % throughout. Values in file
    order would draw a zigzag; a log axis would lose λ = 0."""
    sweep_figure(SWEEP, "kl_weight", tmp_path / "sweep.png", untrained=0.16, constant=0.3)
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000
    left, right, _ = drawn[0].axes
    lines = {to_hex(line.get_color()): line for line in right.lines}
    assert list(lines[SELF].get_xdata()) == [0, 0.01, 1] and lines[SELF].get_ydata() == pytest.approx([41, 51, 61])
    assert lines[ORIG].get_ydata() == pytest.approx([50, 50, 50])
    assert right.get_xscale() == "symlog" and [t.get_text() for t in right.get_xticklabels()] == ["0", "0.01", "1"]
    assert left.lines[0].get_ydata() == pytest.approx([70, 70, 70]) and len(left.lines) == 3
    dots = max(right.collections, key=lambda c: len(c.get_offsets()))
    assert len(dots.get_offsets()) == 9  # every seed is seen
    levels = {line.get_label(): line.get_ydata() for line in right.lines}
    assert list(levels["M0, untrained"]) == [16, 16] and list(levels["best constant explanation"]) == [30, 30]


def test_the_gap_has_a_panel_with_the_intervals_it_was_given(tmp_path, drawn):
    """λ = 0: -9 in [-12, -6]; λ = 0.01 likewise; λ = 1: +11 in [8, 14]. The values are those of the points, not means
    over the summaries, and the note says what the bars are. Content and *changed?* are drawn beside it."""
    low, high = (-0.09, -0.12, -0.06), (0.11, 0.08, 0.14)
    points = [point(v, em=g, content=high, changed_accuracy=low) for v, g in ((1.0, high), (0.01, low), (0.0, low))]
    sweep_figure(SWEEP, "kl_weight", tmp_path / "s.png", points=points)
    axis = drawn[0].axes[2]
    lines = {line.get_label(): line for line in axis.lines}
    assert lines["both parts (EM)"].get_ydata() == pytest.approx([-9, -9, 11])
    assert lines["content: the named label"].get_ydata() == pytest.approx([11, 11, 11])
    assert lines["changed?"].get_ydata() == pytest.approx([-9, -9, -9])
    bars = next(c for c in axis.collections if to_hex(c.get_color()[0]) == BEHAVIOR and len(c.get_paths()) == 3)
    ends = [y for bar in bars.get_paths() for _, y in bar.vertices]
    assert ends == pytest.approx([-12, -6, -12, -6, 8, 14])
    assert axis.get_ylim()[0] < -12 and axis.get_ylim()[1] > 14
    assert "bars in (c): 95 % interval" in drawn[0].get_supxlabel() and "dots: single seeds" in drawn[0].get_supxlabel()


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


def test_no_summaries_are_no_figure():
    with pytest.raises(ValueError, match="no summaries"):
        sweep_figure([], "kl_weight", "never.png")
