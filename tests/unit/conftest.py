"""Unit tests run on the CPU, on a machine with a GPU too."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_gpu() -> Iterator[None]:
    """Hide GPUs from tests that import torch. The expected values and the tiny head sizes are made for the CPU."""
    torch = sys.modules.get("torch")
    with pytest.MonkeyPatch.context() as patch:
        if torch is not None:
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
