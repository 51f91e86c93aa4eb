"""A plan: its numbers, and one page of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from introspect_ray.config import RunConfig
from introspect_ray.planning.assumptions import Assumptions
from introspect_ray.planning.memory import EngineMemory, RunBytes, TrainerMemory
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.split import gpus_of, more_gpus, runs_at_once
from introspect_ray.planning.work import CaseSizes, Part, recomputes_layers
from introspect_ray.schedule import step_group
from introspect_ray.storage.checkpoints import KEEP

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Everything that jobs/plan.py says, in bytes, tokens, FLOPs and GPU-hours."""

    shape: ModelShape
    case: CaseSizes
    cfg: RunConfig  # of one run, with the chosen split
    gpus: int
    trials: int
    trainers: dict[int, TrainerMemory]  # by number of training GPUs
    engine: EngineMemory
    run_bytes: RunBytes
    work: list[Part]
    gpu_hours: dict[str, float]  # of a step, a run and a sweep
    assumptions: Assumptions

    def room_for(self, need: float) -> bool:
        """Whether one GPU has `need` bytes."""
        return need <= GB * self.assumptions.memory_gb

    @property
    def fits(self) -> bool:
        """Whether the chosen split has room, on each of its GPUs and on all of them together."""
        needs = (self.trainers[self.cfg.train.max_workers].total, self.run_bytes.reference_task)
        return all(map(self.room_for, needs)) and self.engine.fits and gpus_of(self.cfg) <= self.gpus


def as_text(plan: Plan) -> str:
    parts = (policy_text, trainer_text, other_text, split_text, work_text, cost_text)
    assumed = table("Assumptions (assume.NAME=VALUE replaces one)", plan.assumptions.rows())
    return "\n\n".join([*(part(plan) for part in parts), assumed])


def table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Aligned columns under a title; text to the left, numbers to the right."""
    body = list(rows)
    lines = [head, *body] if head else body
    columns = []
    for cells, below in zip(zip(*lines, strict=True), zip(*body, strict=True), strict=True):
        size, numbers = max(map(len, cells)), all(cell[:1].isdigit() for cell in below)
        columns.append([cell.rjust(size) if numbers else cell.ljust(size) for cell in cells])
    return "\n".join([title, *(f"  {'  '.join(line)}".rstrip() for line in zip(*columns, strict=True))])


def _fits(yes: bool) -> str:
    return "fits" if yes else "does not fit"


def policy_text(plan: Plan) -> str:
    shape, cfg, case = plan.shape, plan.cfg, plan.case
    lora = f"LoRA rank {cfg.lora_rank}, {shape.lora_parameters(cfg.lora_rank):,} parameters trained"
    return (
        f"{shape.name}: {shape.parameters:,} parameters, {'all trained' if cfg.method == 'full' else lora}\n"
        f"{plan.trials} runs of {cfg.steps:,} steps of {cfg.batch_size} cases\n"
        f"{case.train_cases:,} training and {case.test_cases:,} held-out cases, {case.tree:.0f} tokens per case "
        f"({case.source})"
    )


def trainer_text(plan: Plan) -> str:
    cfg = plan.cfg
    head = ("GPUs", "weights", "gradients", "Adam", "gathered", "M0's head", "activations", "logits", "total", "")
    rows = [
        (str(count), *(f"{part / GB:.1f}" for part in vars(memory).values()), _fits(plan.room_for(memory.total)))
        for count, memory in plan.trainers.items()
    ]
    how = "with" if recomputes_layers(cfg) else "without"
    offload = "; train.offload keeps weights, gradients and Adam in host memory" if cfg.train.offload else ""
    title = f"GB per training GPU, by number of training GPUs (FSDP2, {how} activation checkpointing{offload})"
    return table(title, rows, head)


def other_text(plan: Plan) -> str:
    """Memory of engines and hosts, and what is stored and sent."""
    size, need, cfg = plan.run_bytes, plan.engine, plan.cfg
    parts = f"{need.weights / GB:.1f} weights, {need.workspace / GB:.1f} workspace, {need.cache / GB:.1f} KV cache"
    every = cfg.train.checkpoint_every
    rows = [
        ("engine, per GPU", need.total, f"{_fits(need.fits)} in {need.room / GB:.1f}: {parts}"),
        ("GPU that computes M0's reference", size.reference_task, _fits(plan.room_for(size.reference_task))),
        ("host, per worker, when it loads the policy", 2 * plan.shape.parameters, "if the files are bfloat16"),
        ("M0's reference on disk", size.reference, "once per sweep, in cache_dir"),
        ("checkpoint", size.checkpoint, f"train.checkpoint_every={every}{f', {KEEP} are kept' if every else ': none'}"),
        ("trained policy", size.policy, "once per run, in output_dir"),
        ("weight update", size.update, "sent to the engines per version"),
    ]
    return table("GB elsewhere", [(what, f"{value / GB:.2f}", note) for what, value, note in rows if value])


def split_text(plan: Plan) -> str:
    cfg, rollout = plan.cfg, plan.cfg.rollout
    gpus, more, at_once = gpus_of(cfg), more_gpus(cfg), runs_at_once(cfg, plan.gpus, plan.trials)
    each = f"{gpus} GPUs" if more == gpus else f"{gpus} GPUs, each further one {more}"
    rounds = f", {-(-plan.trials // at_once)} rounds" if 0 < at_once < plan.trials else ""
    return (
        f"Split: {cfg.train.num_workers} GPUs train, {rollout.num_actors} engine(s) of {rollout.num_gpus:g} GPU(s) "
        f"sample; a run takes {each}, and {at_once} of {plan.trials} runs have room on {plan.gpus}\n"
        f"  train.num_workers={cfg.train.num_workers} rollout.num_actors={rollout.num_actors} "
        f"rollout.num_gpus={rollout.num_gpus:g} rollout.tensor_parallel_size={rollout.tensor_parallel_size}\n"
        f"  an engine labels {step_group(cfg)} cases at a time; a sweep makes {at_once} run(s) at once{rounds}"
    )


def work_text(plan: Plan) -> str:
    rows = [
        (f"per {part.per}", part.what, part.by, f"{part.tokens:,.0f}", f"{part.flops / 1e12:,.2f}")
        for part in plan.work
    ]
    return table("Work", rows, ("", "", "by", "tokens", "TFLOP"))


def cost_text(plan: Plan) -> str:
    a, sweep = plan.assumptions, f"{plan.trials} runs and what they share"
    rows = [
        (sweep if per == "sweep" else f"one {per}", f"{hours:,.4f} GPU-hours", f"{hours * a.price:,.4f} USD")
        for per, hours in plan.gpu_hours.items()
    ]
    title = f"Cost, a lower bound: the work above on GPUs that never wait, at {a.utilisation:.0%} of their peak"
    return (
        f"{table(title, rows)}\n  Not in it: starting up, weight updates, waiting for one another, failures. Small "
        "batches reach far less of the peak:\n  time some steps of a run and multiply its hours by "
        f"{gpus_of(plan.cfg) * a.price:,.2f} USD, the price of its GPUs per hour."
    )
