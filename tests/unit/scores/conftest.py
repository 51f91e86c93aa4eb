"""Fixtures for the tests of figures."""

import matplotlib.figure
import pytest


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
