"""jobs/plan.py: config and policy in, the plan out. Starts nothing and writes nothing but --json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, file_sets
from introspect_ray.config.compatibility import workers_text
from introspect_ray.config.load import CHECKPOINT_EVERY
from introspect_ray.errors import UserError
from introspect_ray.planning.assumptions import Assumptions, split_assumptions
from introspect_ray.planning.memory import engine_memory, run_bytes, trainer_memory
from introspect_ray.planning.model_shape import read_shape
from introspect_ray.planning.report import Plan, as_text
from introspect_ray.planning.split import choose_split, splits, tensor_parallel
from introspect_ray.planning.work import CaseSizes, assumed_sizes, counted_sizes, flops_per, work_parts
from introspect_ray.policy import BUNDLED, load_tokenizer
from introspect_ray.runs.policy_cases import model_len, one_token
from introspect_ray.runs.search_space import Space, load_sweep, trial_config
from introspect_ray.tasks import load_cases, open_task

# What cluster/h100.yaml sets, on the paper's main task with labels of the current policy; a file or override wins.
DEFAULTS = {
    "output_dir": "runs/plan", "task.name": "hint_mmlu", "supervision.rule": "online", "alarms.engine_gap": 0.5,
    "train.use_gpu": True, "train.dtype": "bfloat16", "train.token_budget": 16384,
    "train.activation_checkpointing": "layers", "train.checkpoint_every": CHECKPOINT_EVERY,
    "rollout.dtype": "bfloat16", "rollout.num_gpus": 1,
}  # fmt: skip
ROLLOUT_KEYS = ("num_actors", "tensor_parallel_size", "num_gpus")
SPLIT_KEYS = ("train.num_workers", *(f"rollout.{key}" for key in ROLLOUT_KEYS))  # chosen unless given


def plan_job(args: Arguments, space: Space) -> None:
    """Print the plan of a sweep over `space`. Raises UserError for what cannot be planned or does not fit."""
    plan = make_plan(args, space)
    print(as_text(plan))
    if args.flags.get("json"):
        path = Path(args.flags["json"])
        try:
            path.write_text(json.dumps({**asdict(plan), "cfg": plan.cfg.model_dump(mode="json")}, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--json {path}: {error.strerror}") from None
        print(f"\nnumbers  {path}")
    if not plan.fits:
        raise UserError(
            f"{plan.shape.name} does not fit on {plan.gpus} GPU(s) of {plan.assumptions.memory_gb:g} GB (see "
            "above): give more --gpus with a batch_size of at least as many cases, train.offload=true, a smaller "
            "train.token_budget, or method=lora with train.reference=live"
        )


def make_plan(args: Arguments, space: Space) -> Plan:
    """The plan as numbers. Raises UserError for what cannot be planned."""
    gpus = args.flags["gpus"]
    a, overrides = split_assumptions(args.overrides)
    if args.flags.get("policy"):
        overrides["policy"] = args.flags["policy"]
    values, seeds, cfg = load_sweep(space, args.config, overrides, DEFAULTS)
    given = frozenset(key for key in SPLIT_KEYS if key in overrides or file_sets(args.config, key))
    check_planned(cfg)
    case = case_sizes(cfg, a, args.flags.get("tokenizer"))
    shape = read_shape(cfg.policy)
    cfg, trials = trial_config(cfg, space, values[0], seeds[0]), len(values) * len(seeds)
    parts = work_parts(shape, case, cfg)
    tp = tensor_parallel(shape, case, cfg, a, given)
    cfg = choose_split(splits(cfg, parts, gpus, tp, given), shape, case, a, gpus, trials)
    counts = {cfg.train.max_workers, *(2**i for i in range(11) if 2**i <= min(gpus, cfg.batch_size))}
    per_hour = 3600e12 * a.peak_tflops * a.utilisation
    return Plan(
        shape=shape,
        case=case,
        cfg=cfg,
        gpus=gpus,
        trials=trials,
        trainers={count: trainer_memory(shape, case, cfg, count) for count in sorted(counts)},
        engine=engine_memory(shape, case, cfg, a, tp),
        run_bytes=run_bytes(shape, case, cfg),
        work=parts,
        gpu_hours={per: flops / per_hour for per, flops in flops_per(parts, cfg.steps, trials).items()},
        assumptions=a,
    )


def check_planned(cfg: RunConfig) -> None:
    """Raises UserError for auxiliary data and elastic workers, and where trainers and engines do not have whole GPUs of
    their own."""
    if not cfg.train.use_gpu:
        raise UserError("train.use_gpu=false: a plan is of training on GPUs: leave it out")
    if cfg.train.elastic:
        raise UserError(f"train.num_workers={workers_text(cfg)}: a plan is of one number of workers: give one of these")
    if cfg.rollout.num_gpus < 1:
        raise UserError(
            f"rollout.num_gpus={cfg.rollout.num_gpus:g}: engines that share GPUs are not planned: leave it out, and "
            "rollout.weight_transfer too"
        )
    if cfg.auxiliary.path is not None or cfg.auxiliary.hub_id is not None:
        raise UserError(
            "auxiliary.*: auxiliary texts are not planned: leave them out, and add their tokens to each step"
        )


def case_sizes(cfg: RunConfig, a: Assumptions, tokenizer: str | None) -> CaseSizes:
    """The cases' tokens: counted where there are cases (task.path, or the bundled task), else as assumed.

    Raises UserError where there are cases but no tokenizer to count them with, and for answers of several tokens.
    """
    open_task(cfg.task)  # refuses an unknown name
    if cfg.task.name == "hint_mmlu" and cfg.task.path is None:
        return assumed_sizes(a, cfg.task)
    folder = tokenizer or str(BUNDLED.get(cfg.policy, cfg.policy))
    if not Path(folder, "tokenizer_config.json").is_file():
        raise UserError(
            f"task {cfg.task.name} has cases to count, but {folder!r} is not a folder with a tokenizer: "
            "give --tokenizer FOLDER"
        )
    reader: Any = load_tokenizer(folder)
    train, test = (
        CaseTable.build(tokenize_case(case, reader, cfg.task.answer_prefix) for case in side)
        for side in load_cases(cfg.task, reader)
    )
    if not (one_token(train) and one_token(test)):
        raise UserError(
            f"task {cfg.task.name} has labels of several tokens or free text, and the KL along such responses is not "
            "planned: plan with labels of one token, and time some steps of the run itself"
        )
    return counted_sizes(f"counted with the tokenizer of {folder}", train, model_len(cfg, (train, test)), len(test))
