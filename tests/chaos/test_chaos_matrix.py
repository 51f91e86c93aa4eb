"""Each cell of the matrix of faults and phases. Those that CI runs are not marked slow."""

from __future__ import annotations

import pytest

from tests.chaos.cells import run_cell
from tests.chaos.job import PATIENCE_S
from tests.chaos.table import CELLS, Fault

IN_CI = {("status board killed", "mid-step"), ("engine and training worker killed", "mid-step")}
pytestmark = [pytest.mark.ray, pytest.mark.timeout(4 * PATIENCE_S)]


@pytest.mark.parametrize(
    ("fault", "phase"),
    [
        pytest.param(
            fault,
            phase,
            id=f"{fault.name} x {phase}",
            marks=[] if (fault.name, phase) in IN_CI else [pytest.mark.slow],
        )
        for fault, phase in CELLS
    ],
)
def test_a_run_ends_at_the_bits_of_an_undisturbed_one(tmp_path, needs, runs, report, fault: Fault, phase: str):
    outcome = run_cell(fault, phase, tmp_path, needs, runs(fault.kind(phase))[1])
    report.add(f"{fault.name} x {phase}", outcome.row)
    print({key: value for key, value in outcome.row.items() if value not in (None, "")})
    assert outcome.verdict != "failed", outcome.why
