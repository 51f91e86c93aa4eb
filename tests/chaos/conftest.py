"""Options of the chaos matrix, the runs that nothing happens to, and the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.cells import KINDS, undisturbed
from tests.chaos.report import Report
from tests.chaos.surroundings import Needs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, object]]]:
    """From a kind of job to the folder and the result of its undisturbed run, which is made once."""
    made: dict[str, tuple[Path, dict[str, object]]] = {}

    def run(kind: str) -> tuple[Path, dict[str, object]]:
        assert kind in KINDS
        if kind not in made:
            folder = tmp_path_factory.mktemp(f"undisturbed-{kind}")
            made[kind] = folder, undisturbed(kind, folder)
        return made[kind]

    return run


@pytest.fixture
def needs(request: pytest.FixtureRequest, runs) -> Needs:
    return Needs(lambda: request.getfixturevalue("s3_env"), lambda kind: runs(kind)[0])


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Where CHAOS_REPORT says (a .md file; `make chaos`: docs/chaos.md), else in a temporary folder."""
    named = os.environ.get("CHAOS_REPORT")
    return Report(Path(named) if named else tmp_path_factory.mktemp("chaos") / "chaos.md")
