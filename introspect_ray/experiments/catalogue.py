"""All experiments, in the order of the report."""

from __future__ import annotations

import re

from introspect_ray.errors import UserError
from introspect_ray.experiments import auxiliary, checked, drift, headline, patched, sweeps
from introspect_ray.experiments.protocol import Experiment


def _order(experiment: Experiment) -> tuple[int, str]:
    """Figures by number, then the rest."""
    number = re.fullmatch(r"fig(\d+)", experiment.name)
    return (int(number[1]) if number else 1000, experiment.name)


EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in sorted(
        [
            *headline.EXPERIMENTS,
            *sweeps.EXPERIMENTS,
            *drift.EXPERIMENTS,
            *auxiliary.EXPERIMENTS,
            *patched.EXPERIMENTS,
            *checked.EXPERIMENTS,
        ],
        key=_order,
    )
}


def chosen(names: tuple[str, ...]) -> list[Experiment]:
    """The experiments by name; "all" stands for each. Raises UserError for none and for an unknown one."""
    known = ", ".join(EXPERIMENTS)
    if not names:
        raise UserError(f"reproduce: name an experiment, or all: {known}")
    if unknown := [name for name in names if name != "all" and name not in EXPERIMENTS]:
        raise UserError(f"reproduce: no experiment {unknown[0]!r}; there are all, {known}")
    return [one for name, one in EXPERIMENTS.items() if "all" in names or name in names]
