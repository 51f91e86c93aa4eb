"""One run on 8 to 1,024 GPUs, its batch grown with them: the closed form against the simulated loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

from introspect_ray.config import RunConfig, override
from introspect_ray.planning.layout import Layout, Setting, make_layout, tensor_parallel
from introspect_ray.planning.memory import trainer_fits
from introspect_ray.planning.simulation import Simulated, simulate

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
SIMULATED_STEPS = 100


@dataclass(frozen=True)
class Scaled:
    """One row: a layout on all of `gpus` GPUs with its simulation."""

    gpus: int
    lag: int
    layout: Layout
    simulated: Simulated

    @property
    def error(self) -> float:
        """(predicted - simulated) / simulated step time."""
        return self.layout.pace.step / self.simulated.pace.step - 1

    @property
    def cases_per_second(self) -> float:
        return self.layout.cfg.batch_size / self.simulated.pace.step


def scaling(setting: Setting, cfg: RunConfig, lags: tuple[int, ...] = (0, 1)) -> list[Scaled]:
    """A row for each size and lag on which the policy fits: the split with the most cases a second, with one token
    budget of cases for each training GPU."""
    tp = tensor_parallel(setting, cfg, frozenset())
    rows = []
    for gpus in SIZES:
        for lag in lags:
            layout = _quickest(replace(setting, gpus=gpus, trials=1), override(cfg, {"lag": lag}), tp)
            if layout is not None:
                steps = min(SIMULATED_STEPS, layout.cfg.steps)
                rows.append(Scaled(gpus, lag, layout, simulate(layout.cfg, layout.times, steps)))
    return rows


def _quickest(setting: Setting, cfg: RunConfig, tp: int) -> Layout | None:
    share = max(1, int(cfg.train.token_budget // setting.work.tree))
    found = []
    for engines in _engine_counts(setting.gpus, tp):
        layout = _filled(setting, cfg, share, engines, tp)
        if layout is not None and trainer_fits(layout.memory, setting.assumed):
            found.append(layout)
    return max(found, key=lambda layout: layout.cfg.batch_size / layout.pace.step, default=None)


def _filled(setting: Setting, cfg: RunConfig, share: int, engines: int, tp: int) -> Layout | None:
    """All GPUs beside the engines train, `share` cases each; None if there is none left."""
    trainers = setting.gpus - engines * tp
    while trainers > 0:
        grown = override(cfg, {"train.num_workers": 1, "batch_size": share * trainers})
        layout = make_layout(setting, grown, trainers, engines, tp)
        if layout.gpus <= setting.gpus:
            return layout
        trainers -= layout.gpus - setting.gpus  # a mixed run's second engine
    return None


def _engine_counts(gpus: int, tp: int) -> list[int]:
    """Engines to try: multiples of a 32nd of the GPUs, and one; at most three quarters of the GPUs."""
    stride = max(1, gpus // 32)
    return [1, *(n for n in range(stride, gpus * 3 // 4 // tp + 1, stride) if n > 1)]
