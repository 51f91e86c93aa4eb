"""A plan as JSON: the numbers of report.py, as they are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from introspect_ray.planning.durations import sent_bytes
from introspect_ray.planning.layout import TENSOR_PARALLEL, Layout
from introspect_ray.planning.memory import engine_fits, engine_memory, reference_bytes, trainer_fits, trainer_memory
from introspect_ray.planning.report import Plan, chosen_sync, memory_counts, sweep_cost


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers of the plan; seconds, bytes, FLOPs, USD."""
    setting, c = plan.setting, plan.chosen
    shape, work, a = setting.shape, setting.work, setting.assumed
    tps = {tp: engine_memory(shape, work, c.cfg, a, tp) for tp in TENSOR_PARALLEL}
    trainers = {n: trainer_memory(shape, work, c.cfg, n) for n in memory_counts(setting, c.cfg)}
    return {
        "policy": {**asdict(shape), "parameters": shape.parameters},
        "gpus": setting.gpus,
        "trials": setting.trials,
        "config": c.cfg.model_dump(mode="json"),
        "work": asdict(work),
        "flops": {**asdict(plan.flops), "train": plan.flops.train},
        "trainer_memory": {n: {**asdict(m), "total": m.total, "fits": trainer_fits(m, a)} for n, m in trainers.items()},
        "reference_memory": dict(zip(("weights", "activations"), reference_bytes(shape, work, c.cfg), strict=True)),
        "engine_memory": {n: {**asdict(m), "fits": engine_fits(m)} for n, m in tps.items()},
        "sync": {
            "bytes": sent_bytes(shape, c.cfg),
            **{
                path: dict(zip(("publish", "deliver"), chosen_sync(plan, path), strict=True))
                for path in ("host", "device")
            },
        },
        "splits": [_layout_json(plan, layout) for layout in plan.layouts],
        "chosen": _layout_json(plan, c),
        "simulated": {"seconds": plan.simulated.seconds, **asdict(plan.simulated.pace)},
        "scaling": [
            {
                "gpus": row.gpus, "lag": row.lag, "batch": row.layout.cfg.batch_size, "error": row.error,
                **_layout_json(plan, row.layout), "simulated": asdict(row.simulated.pace),
            }
            for row in plan.scaled
        ],
        "assumptions": {name: {"value": getattr(a, name), "unit": u, "source": s} for name, _, u, s in a.rows()},
    }  # fmt: skip


def _layout_json(plan: Plan, layout: Layout) -> dict[str, Any]:
    return {
        "trainers": layout.trainers,
        "engines": layout.engines,
        "tensor_parallel": layout.cfg.rollout.tensor_parallel_size,
        "gpus": layout.gpus,
        "fits": trainer_fits(layout.memory, plan.setting.assumed),
        "durations": asdict(layout.times),
        "predicted": asdict(layout.pace),
        "run_seconds": layout.run_seconds,
        "shared_seconds": layout.shared_seconds,
        "runs_at_once": layout.at_once,
        "sweep_seconds": layout.sweep_seconds,
        "sweep_usd": sweep_cost(plan, layout),
    }
