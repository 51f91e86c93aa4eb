"""Curves of one run's steps."""

import pytest

from introspect_ray.scores.training_figure import smooth, training_figure


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
