"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.planning.durations import durations, sent_bytes
from introspect_ray.planning.layout import TENSOR_PARALLEL, Layout, Setting, balanced_engines
from introspect_ray.planning.memory import (
    engine_fits,
    engine_memory,
    kept_bytes,
    reference_bytes,
    trainer_fits,
    trainer_memory,
)
from introspect_ray.planning.scaling import Scaled
from introspect_ray.planning.schedule import predict
from introspect_ray.planning.simulation import Simulated, simulate
from introspect_ray.planning.work import StepFlops, label_tokens, step_flops

GB = 1e9
Row = Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What jobs/plan.py found."""

    setting: Setting
    cfg: RunConfig
    layouts: list[Layout]
    chosen: Layout
    simulated: Simulated  # of the chosen layout
    scaled: list[Scaled]

    @property
    def flops(self) -> StepFlops:
        return step_flops(self.setting.shape, self.setting.work, self.chosen.cfg)


def as_text(plan: Plan) -> str:
    """All tables after the dry run's block."""
    parts = [
        policy_text(plan),
        memory_text(plan.setting, plan.chosen.cfg),
        work_text(plan),
        sync_text(plan),
        split_text(plan),
    ]
    return "\n\n".join([*parts, chosen_text(plan), scaling_text(plan), assumptions_text(plan)])


def table(title: str, head: Row, rows: Sequence[Row]) -> str:
    """Aligned columns under a title; text left, numbers right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    left = [not all(row[i].strip()[:1] in "0123456789+-" for row in rows) for i in range(len(head))]

    def line(row: Row) -> str:
        cells = [cell.ljust(w) if text else cell.rjust(w) for cell, w, text in zip(row, widths, left, strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([title, *map(line, (head, *rows))])


def policy_text(plan: Plan) -> str:
    shape, cfg = plan.setting.shape, plan.cfg
    trained = f"LoRA rank {cfg.lora_rank}: {shape.lora_parameters(cfg.lora_rank):,} trained"
    return (
        f"policy {shape.name}: {shape.parameters:,} parameters ({shape.layers} layers, width {shape.hidden}, "
        f"vocabulary {shape.vocab:,}{', tied' if shape.tied else ''}); "
        f"{'all trained' if cfg.method == 'full' else trained}"
    )


def memory_text(setting: Setting, cfg: RunConfig) -> str:
    """Trainer by number of GPUs, with and without activation checkpointing; engine by tensor parallelism."""
    shape, work, a = setting.shape, setting.work, setting.assumed
    other = override(cfg, {"train.activation_checkpointing": not cfg.train.activation_checkpointing})
    rows = []
    for count in memory_counts(setting, cfg):
        memory, without = (trainer_memory(shape, work, c, count) for c in (cfg, other))
        parts = [f"{value / GB:.1f}" for value in (*vars(memory).values(), memory.total)]
        fits = "fits" if trainer_fits(memory, a) else "does not fit"
        rows.append([str(count), *parts, fits, f"{without.total / GB:.1f}"])
    switched = f"{'with' if not cfg.train.activation_checkpointing else 'without'} checkpointing"
    head = ["GPUs", "masters", "gradients", "Adam", "gathered", "M0 head", "activations", "logits", "total"]
    how = "with" if cfg.train.activation_checkpointing else "without"
    title = f"GB per training GPU (FSDP2 full shard, {cfg.train.dtype} copies, {how} activation checkpointing)"
    if cfg.train.offload:
        host = sum(kept_bytes(shape, cfg, cfg.train.num_workers)) / GB
        title += f"; weights, gradients and Adam in host memory, {host:.1f} GB each of {cfg.train.num_workers}"
    engines = []
    for tp in TENSOR_PARALLEL:
        memory_tp = engine_memory(shape, work, cfg, a, tp)
        numbers = (memory_tp.weights, memory_tp.workspace, memory_tp.kv_room, memory_tp.kv_needed)
        engines.append(
            [str(tp), *(f"{v / GB:.1f}" for v in numbers), "fits" if engine_fits(memory_tp) else "does not fit"]
        )
    served = table(
        f"GB per engine GPU ({cfg.rollout.gpu_memory_utilization:.0%} of {a.memory_gb:g} GB, {cfg.rollout.dtype})",
        ["tensor parallel", "weights", "workspace", "KV room", "KV needed", ""],
        engines,
    )
    return f"{table(title, [*head, '', switched], rows)}\n{start_text(setting, cfg)}\n\n{served}"


def start_text(setting: Setting, cfg: RunConfig) -> str:
    """What holds the whole policy before and beside sharded training: M0's reference task, and each worker's host."""
    shape, a = setting.shape, setting.assumed
    weights, activations = (value / GB for value in reference_bytes(shape, setting.work, cfg))
    fits = "fits" if weights + activations <= a.memory_gb else "does not fit"
    reference = (
        f"M0's reference, one task on one GPU: {weights:.1f} GB of weights, {activations:.1f} of activations: {fits}"
    )
    loaded, near = 2 * shape.parameters / GB, min(cfg.train.num_workers, a.gpus_per_node)
    host = (
        f"host memory at the start: every training worker loads the whole policy, {loaded:.1f} GB if it is stored in "
        f"bfloat16; {near} on a node: {near * loaded:.1f} GB"
    )
    return f"{reference}\n{host}" if cfg.train.reference == "cache" else host


def memory_counts(setting: Setting, cfg: RunConfig) -> list[int]:
    """Numbers of training GPUs to show: the powers of two there are, and the chosen one."""
    return sorted({cfg.train.num_workers, *(2**i for i in range(11) if 2**i <= setting.gpus)})


def work_text(plan: Plan) -> str:
    work, flops, cases = plan.setting.work, plan.flops, plan.chosen.cfg.batch_size
    how = "trees of x and x∖C, by the trainers" if learner_labels(plan.cfg) else "x and x∖C, prefix shared"
    rows = [
        ["training: forward", f"{work.tree * cases:,.0f}", f"{flops.forward / 1e12:.1f}"],
        ["training: backward", "", f"{flops.backward / 1e12:.1f}"],
        ["training: recomputed activations", "", f"{flops.recompute / 1e12:.1f}"],
        ["training: M0's output head", "", f"{flops.reference / 1e12:.2f}"],
        [f"labelling: {how}", f"{label_tokens(work, plan.cfg) * cases:,.0f}", f"{flops.rollout / 1e12:.1f}"],
    ]
    return table(f"a step of {cases} cases (tokens: {work.source})", ["", "tokens", "TFLOP"], rows)


def sync_text(plan: Plan) -> str:
    shape, cfg = plan.setting.shape, plan.chosen.cfg
    rows = []
    for path, what in (("host", "through host memory"), ("device", "from GPU to GPU")):
        publish, deliver = chosen_sync(plan, path)
        planned = "planned with" if path == plan.setting.transfer else ""
        if path == "device" and cfg.method == "lora":
            planned = "not for adapters"
        rows.append([path, what, f"{publish:.3f}", f"{deliver:.3f}", planned])
    title = f"weight sync: {sent_bytes(shape, cfg) / GB:.2f} GB a version; seconds"
    return table(title, ["transfer", "", "publish (trainer waits)", "deliver (engine)", ""], rows)


def split_text(plan: Plan) -> str:
    """Every number of training GPUs with its best number of engines."""
    rows = []
    for layout in plan.layouts:
        times, cfg = layout.times, layout.cfg
        steps = [predict(override(cfg, {"lag": lag}), times).step for lag in (0, 1)]
        balance = balanced_engines(layout)
        fits = trainer_fits(layout.memory, plan.setting.assumed)
        rows.append([
            str(layout.trainers), str(layout.engines), f"{times.update:.3f}",
            f"{label_time(layout):.3f}",
            *(f"{step:.3f}" for step in steps), f"{layout.pace.trainer_idle:.0%}", f"{layout.pace.engine_idle:.0%}",
            "-" if balance is None else f"{balance:.2f}", str(layout.gpus), str(layout.at_once),
            f"{layout.sweep_seconds / 3600:.2f}", f"{sweep_cost(plan, layout):,.0f}",
            "<- chosen" if layout is plan.chosen else "" if fits else "does not fit",
        ])  # fmt: skip
    head = ["train", "engines", "update s", "label s", "step s, lag 0", "lag 1", "trainer idle", "engines idle",
            "engines in balance", "GPUs a run", "runs at once", "sweep h", "USD", ""]  # fmt: skip
    return table(f"splits of {plan.setting.gpus} GPUs (idle and sweep at lag {plan.cfg.lag})", head, rows)


def label_time(layout: Layout) -> float:
    """Seconds of one group on an engine, or of one step's cases on the trainers, whoever labels."""
    own = learner_labels(layout.cfg)
    group = min(layout.cfg.rollout.group_size, layout.cfg.batch_size)
    return layout.times.label_own if own else layout.times.label(group)


def sweep_cost(plan: Plan, layout: Layout) -> float:
    """USD of all trials, all GPUs paid for until the last run ends."""
    return layout.sweep_seconds / 3600 * plan.setting.gpus * plan.setting.assumed.price


def chosen_text(plan: Plan) -> str:
    c, a, s = plan.chosen, plan.setting.assumed, plan.simulated
    trials = plan.setting.trials
    rows = [[f"{lag}", *pace_cells(plan, lag)] for lag in sorted({0, 1, 2, plan.cfg.lag})]
    head = [
        "lag",
        "step s, formula",
        "simulated",
        "trainer idle, formula",
        "simulated",
        "engines idle, formula",
        "simulated",
    ]
    times = c.times
    title = (
        f"chosen: {c.trainers} GPUs train, {c.engines} engine(s) of {c.cfg.rollout.tensor_parallel_size} sample; "
        f"publish {times.gather:.3f} s, deliver {times.deliver:.3f} s, "
        f"label {label_time(c):.3f} s, update {times.update:.3f} s; "
        f"the simulation runs the loop for {plan.cfg.steps} steps"
    )
    run, in_turn = c.run_seconds / 3600, c.in_turn_seconds(trials) / 3600
    cost = (
        f"cost: {plan.setting.gpus * a.price:,.2f} USD an hour for {plan.setting.gpus} GPUs\n"
        f"a run of {plan.cfg.steps} steps: {run:.2f} h, {s.seconds / 3600:.2f} h of them steps (simulated), "
        f"{run * c.gpus * a.price:,.0f} USD on its {c.gpus} GPUs\n"
        f"the sweep of {trials} runs: {c.at_once} side by side (a jobs/train.py each) {c.sweep_seconds / 3600:.2f} h, "
        f"{sweep_cost(plan, c):,.0f} USD; one after another (jobs/sweep_lambda.py on {c.gpus} GPUs) "
        f"{in_turn:.2f} h, {in_turn * c.gpus * a.price:,.0f} USD"
    )
    return f"{table(title, head, rows)}\n\n{cost}"


def pace_cells(plan: Plan, lag: int) -> list[str]:
    cfg = override(plan.chosen.cfg, {"lag": lag})
    ours = predict(cfg, plan.chosen.times)
    theirs = plan.simulated.pace if lag == plan.cfg.lag else simulate(cfg, plan.chosen.times).pace
    return [
        *(f"{p.step:.3f}" for p in (ours, theirs)),
        *(f"{p.trainer_idle:.1%}" for p in (ours, theirs)),
        *(f"{p.engine_idle:.1%}" for p in (ours, theirs)),
    ]


def scaling_text(plan: Plan) -> str:
    rows = []
    for row in plan.scaled:
        layout, pace = row.layout, row.simulated.pace
        rows.append([
            str(row.gpus), str(row.lag), str(layout.trainers), str(layout.engines), str(layout.cfg.batch_size),
            f"{layout.pace.step:.3f}", f"{pace.step:.3f}", f"{row.error:+.1%}", f"{pace.trainer_idle:.0%}",
            f"{pace.engine_idle:.0%}", f"{row.cases_per_second:,.1f}",
        ])  # fmt: skip
    head = ["GPUs", "lag", "train", "engines", "batch", "step s, formula", "simulated", "error", "trainer idle",
            "engines idle", "cases/s"]  # fmt: skip
    title = "one run on all GPUs, its batch grown to a token budget each (not the paper's batch, so not its training)"
    return table(title, head, rows) if rows else f"{title}: fits on none of the sizes"


def assumptions_text(plan: Plan) -> str:
    return table("assumptions (assume.NAME=VALUE)", ["name", "value", "unit", "source"], plan.setting.assumed.rows())


def chosen_sync(plan: Plan, path: Any) -> tuple[float, float]:
    """(publish, deliver) of the chosen layout by "host" or "device"."""
    c = plan.chosen
    times = durations(
        plan.setting.shape, plan.setting.work, c.cfg, plan.setting.assumed, c.trainers,
        c.cfg.rollout.tensor_parallel_size, path,
    )  # fmt: skip
    return times.gather, times.deliver
