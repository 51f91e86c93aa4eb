"""The organism's cases, on which the GPU tests train."""

from __future__ import annotations

import pytest
from learner_helpers import organism_cases

from introspect_ray.records import TokenizedCase


@pytest.fixture(scope="module")
def cases() -> list[TokenizedCase]:
    return organism_cases(48)
