"""How many GPUs train and how many sample: every split that fits is timed, the cheapest of the quickest is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from introspect_ray.config import RunConfig, override
from introspect_ray.config.compatibility import learner_labels
from introspect_ray.errors import UserError
from introspect_ray.planning.durations import Durations, Transfer, durations, label_seconds
from introspect_ray.planning.hardware import Assumptions
from introspect_ray.planning.memory import (
    WIDTH,
    TrainerMemory,
    engine_fits,
    engine_memory,
    trainer_fits,
    trainer_memory,
)
from introspect_ray.planning.model_shape import ModelShape
from introspect_ray.planning.schedule import Pace, predict
from introspect_ray.planning.work import CaseWork
from introspect_ray.runs.placement import resources

TENSOR_PARALLEL = (1, 2, 4, 8)
_NEAR = 1.02  # times within 2 % are the same; then fewer GPUs win


@dataclass(frozen=True)
class Setting:
    """What all layouts of a plan share."""

    shape: ModelShape
    work: CaseWork
    assumed: Assumptions
    transfer: Transfer
    gpus: int
    trials: int


@dataclass(frozen=True)
class Layout:
    """One split of one run's GPUs, with its pace and what a sweep over it takes."""

    cfg: RunConfig
    memory: TrainerMemory
    times: Durations
    pace: Pace
    run_seconds: float
    shared_seconds: float  # of a run, what a sweep on one set of GPUs takes once: see fixed_seconds
    gpus: int  # of one run, at its widest
    at_once: int  # runs side by side on all GPUs
    sweep_seconds: float  # of all trials, side by side

    @property
    def trainers(self) -> int:
        return self.cfg.train.num_workers

    @property
    def engines(self) -> int:
        return self.cfg.rollout.num_actors

    def in_turn_seconds(self, trials: int) -> float:
        """Of a sweep that runs one trial after another on the GPUs of one run (jobs/sweep_lambda.py)."""
        return self.shared_seconds + trials * (self.run_seconds - self.shared_seconds)


def tensor_parallel(setting: Setting, cfg: RunConfig, given: frozenset[str]) -> int:
    """The given tensor parallelism, else the least that holds weights and KV cache. Raises UserError if none does."""
    if "rollout.tensor_parallel_size" in given:
        tried: tuple[int, ...] = (cfg.rollout.tensor_parallel_size,)
    else:
        tried = TENSOR_PARALLEL
    for tp in tried:
        if engine_fits(engine_memory(setting.shape, setting.work, cfg, setting.assumed, tp)):
            return tp
    need = engine_memory(setting.shape, setting.work, cfg, setting.assumed, tried[-1])
    raise UserError(
        f"an engine of {setting.shape.name} does not fit on {tried[-1]} GPU(s) of {setting.assumed.memory_gb:g} GB: "
        f"{(need.weights + need.workspace) / 1e9:.1f} GB of weights and workspace, {need.kv_needed / 1e9:.1f} GB of KV "
        "cache: raise rollout.tensor_parallel_size, or lower rollout.group_size"
    )


def make_layout(setting: Setting, cfg: RunConfig, trainers: int, engines: int, tp: int, regroup: bool = True) -> Layout:
    """The layout of `trainers` training GPUs and `engines` engines of `tp` GPUs; `regroup`: each engine one group."""
    changes = {
        "train.num_workers": trainers,
        "rollout.num_actors": engines,
        "rollout.num_gpus": tp,
        "rollout.tensor_parallel_size": tp,
    }
    if regroup:
        changes["rollout.group_size"] = -(-cfg.batch_size // engines)
    cfg = override(cfg, changes)
    shape, work, assumed = setting.shape, setting.work, setting.assumed
    times = durations(shape, work, cfg, assumed, trainers, tp, setting.transfer)
    pace = predict(cfg, times)
    delivered = times.gather + times.deliver  # of the last version, for the evaluation
    shared, own = fixed_seconds(setting, cfg, engines, tp)
    run = shared + cfg.steps * pace.step + delivered + own
    gpus = math.ceil(resources(cfg)["GPU"])
    at_once = max(1, min(setting.trials, setting.gpus // gpus))
    return Layout(
        cfg=cfg,
        memory=trainer_memory(shape, work, cfg, trainers),
        times=times,
        pace=pace,
        run_seconds=run,
        shared_seconds=shared,
        gpus=gpus,
        at_once=at_once,
        sweep_seconds=-(-setting.trials // at_once) * run,
    )


def layouts(setting: Setting, cfg: RunConfig, given: frozenset[str]) -> list[Layout]:
    """The best layout of every number of training GPUs that the batch and the GPUs allow, fit or not.

    `given` are the config keys a user set: they are kept.
    """
    tp = tensor_parallel(setting, cfg, given)
    if "rollout.num_gpus" in given and cfg.rollout.num_gpus != tp:
        raise UserError(
            f"rollout.num_gpus={cfg.rollout.num_gpus:g}: a plan gives each engine {tp} GPU(s) of its own (tensor "
            f"parallelism), engines that share GPUs are not modelled: set rollout.num_gpus={tp}, or leave it out"
        )
    most = min(cfg.batch_size, setting.gpus - tp)
    if most < 1:
        raise UserError(f"--gpus {setting.gpus}: a run needs one to train and {tp} to sample")
    trainers = [cfg.train.num_workers] if "train.num_workers" in given else list(_counts(most))
    found, least = [], None
    for count in trainers:
        room = max(1, min((setting.gpus - count) // tp, cfg.batch_size))
        engines = [cfg.rollout.num_actors] if "rollout.num_actors" in given else list(_counts(room))
        regroup = "rollout.group_size" not in given
        made = [make_layout(setting, cfg, count, n, tp, regroup) for n in engines]
        least = least or made[0]
        if fitting := [layout for layout in made if layout.gpus <= setting.gpus]:
            found.append(best(fitting))
    if not found and least:
        extra = least.gpus - least.trainers - least.engines * tp
        second = f", of which {extra} for a mixed run's second engine" if extra else ""
        raise UserError(
            f"train.num_workers={least.trainers} and rollout.num_actors={least.engines} of {tp} GPUs need "
            f"{least.gpus} GPUs{second}; --gpus is {setting.gpus}"
        )
    return found


def best(candidates: list[Layout]) -> Layout:
    """The quickest sweep; of those within 2 % the one of the fewest GPUs."""
    quickest = min(layout.sweep_seconds for layout in candidates)
    near = [layout for layout in candidates if layout.sweep_seconds <= _NEAR * quickest]
    return min(near, key=lambda layout: (layout.gpus, layout.sweep_seconds))


def choose(setting: Setting, found: list[Layout]) -> Layout:
    """The best layout whose trainers fit. Raises UserError with the numbers if none does."""
    fitting = [layout for layout in found if trainer_fits(layout.memory, setting.assumed)]
    if not fitting:
        last = found[-1]
        raise UserError(
            f"{setting.shape.name} does not train on {last.trainers} GPU(s) of {setting.assumed.memory_gb:g} GB: "
            f"{last.memory.total / 1e9:.1f} GB each: give more --gpus, a batch_size of at least as many cases, "
            "train.activation_checkpointing=true, train.offload=true, a smaller train.token_budget or method=lora"
        )
    return best(fitting)


def _counts(most: int) -> Iterator[int]:
    """1 ... most: all up to 16, then in steps of about a quarter, in whole eights."""
    count = 1
    while count < most:
        yield count
        count = count + 1 if count < 16 else -(-(count + max(8, count // 4)) // 8) * 8
    yield most


def fixed_seconds(setting: Setting, cfg: RunConfig, engines: int, tp: int) -> tuple[float, float]:
    """(shared, own): a run outside its steps, by what all trials of a sweep share (setup.set_up) and the rest.

    Shared: start of the engines, M0's labels and explanations; beside them, on a training GPU, its reference where it
    is cached. Own: start of the trainers, the evaluation's labels and explanations.
    """
    shape, work, a = setting.shape, setting.work, setting.assumed
    _, case = label_seconds(shape, work, cfg, a, tp)
    share = work.test_cases / engines
    asked = shape.body_flops(work.question) / tp / (a.peak(cfg.rollout.dtype) * a.mfu_prefill) + a.request_s
    weights = WIDTH[cfg.rollout.dtype] * shape.parameters / tp / (1e12 * a.hbm_tb_s)
    decode = max(weights, shape.layers * a.host_s_per_layer) * work.targets * -(-share // a.kv_sequences)
    evaluated = share * (case + asked) + decode
    labelled = work.train_cases / engines * case
    reference = 0.0
    if cfg.train.reference == "cache":
        reference = shape.body_flops(work.both) * work.train_cases / (a.peak(cfg.train.dtype) * a.mfu_train)
    return a.startup_s + max(labelled + evaluated, reference), a.trainer_startup_s + evaluated


def balanced_engines(layout: Layout) -> float | None:
    """Engines at which labelling and delivering take as long as the trainer's own step (lag >= 1); None where a
    delivery alone takes longer, or the trainers label."""
    times, cfg = layout.times, layout.cfg
    if learner_labels(cfg):
        return None
    n = cfg.rollout.sync_every
    room = n * times.update - times.deliver + (0 if times.rendezvous else times.gather)
    return n * cfg.batch_size * times.label_case / room if room > 0 else None
