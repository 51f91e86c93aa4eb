"""The table of a joint grid, by hand."""

from summaries import point, summary

from introspect_ray.scores.grid import grid_table


def test_a_row_per_point_with_the_gaps_of_the_points():
    """lr 0.1: Self .40 .42, Orig .30 .32, so 41.0 and 31.0; lr 0.2: one seed. Gaps are those of the points."""
    rows = [summary(1.0, *both, seed=k) | {"lr": lr} for both, k, lr in
            (((0.40, 0.30), 0, 0.1), ((0.42, 0.32), 1, 0.1), ((0.6, 0.7), 0, 0.2))]  # fmt: skip
    wide = (0.1, -0.05, 0.25)
    points = [
        point(1.0, em=wide, content=wide, changed_accuracy=(-0.11, -0.2, -0.1)) | {"lr": 0.1},
        point(1.0, em=(-0.1, -0.2, 0.0), content=wide, changed_accuracy=wide) | {"lr": 0.2},
    ]
    lines = grid_table(rows, ["kl_weight", "lr"], points).split("\n")
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    shown = "+10.0 [-5.0,+25.0]"
    assert cells[1] == ["1", "0.1", "2", "41.0", "31.0", shown, shown, "-11.0 [-20.0,-10.0]", "70.0"]
    assert cells[2][:6] == ["1", "0.2", "1", "60.0", "70.0", "-10.0 [-20.0,+0.0]"]
    assert lines[3:] == ["[ ]: 95 % interval"]
