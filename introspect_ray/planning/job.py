"""jobs/plan.py: config and policy in, the plan out. Starts nothing, writes nothing but --json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, file_sets
from introspect_ray.config.compatibility import weight_transfer
from introspect_ray.errors import UserError
from introspect_ray.planning.durations import Transfer
from introspect_ray.planning.hardware import Assumptions, split_assumptions
from introspect_ray.planning.layout import Setting, choose, layouts
from introspect_ray.planning.memory import check_reference
from introspect_ray.planning.model_shape import read_shape
from introspect_ray.planning.report import Plan, as_text, memory_text
from introspect_ray.planning.report_json import as_json
from introspect_ray.planning.scaling import scaling
from introspect_ray.planning.simulation import simulate
from introspect_ray.planning.work import CaseWork, assumed_work, measured_work
from introspect_ray.policy import BUNDLED, load_tokenizer
from introspect_ray.runs.placement import plan_text
from introspect_ray.runs.preflight import model_len
from introspect_ray.runs.search_space import Space, load_sweep, trial_config
from introspect_ray.tasks import load_cases, open_task

# What cluster/h100.yaml sets, on the paper's main task with labels of the current policy; a file or override wins.
DEFAULTS = {
    "output_dir": "runs/plan",
    "task.name": "hint_mmlu",
    "supervision.rule": "online",
    "train.use_gpu": True,
    "train.dtype": "bfloat16",
    "train.token_budget": 16384,
    "train.activation_checkpointing": True,
    "rollout.dtype": "bfloat16",
    "rollout.num_gpus": 1,
    "alarms.engine_gap": 0.5,
}
TRANSFERS = {"host": "object_store", "device": "nccl"}  # --transfer -> rollout.weight_transfer


def plan_job(args: Arguments, space: Space) -> None:
    """Print the plan of a sweep over `space`. Raises UserError for what cannot be planned."""
    plan = make_plan(args, space)
    chosen = plan.chosen.cfg
    longest = chosen.rollout.max_model_len or -(-plan.setting.work.longest // 32) * 32
    print(plan_text(chosen, plan.setting.trials, plan.setting.work.train_cases, plan.setting.work.test_cases, longest))
    print(as_text(plan))
    if args.flags.get("json"):
        path = Path(args.flags["json"])
        try:
            path.write_text(json.dumps(as_json(plan), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(f"--json {path}: {error.strerror}") from None
        print(f"\nnumbers  {path}")


def make_plan(args: Arguments, space: Space) -> Plan:
    """Everything the plan says, as numbers."""
    flags = args.flags
    assumed, overrides = split_assumptions(args.overrides)
    if flags.get("policy"):
        overrides["policy"] = flags["policy"]
    if flags.get("transfer"):
        overrides["rollout.weight_transfer"] = TRANSFERS[flags["transfer"]]
    if flags["gpus"] < 1:
        raise UserError(f"--gpus {flags['gpus']}: expected at least 1")
    values, seeds, cfg = load_sweep(space, args.config, overrides, DEFAULTS)
    given = frozenset(key for key in _layout_keys() if key in overrides or file_sets(args.config, key))
    check_modelled(cfg)
    shape = read_shape(cfg.policy)
    transfer: Transfer = "host" if weight_transfer(cfg) == "object_store" else "device"
    work = case_work(cfg, assumed, flags.get("tokenizer"))
    setting = Setting(shape, work, assumed, transfer, flags["gpus"], len(values) * len(seeds))
    trial = trial_config(cfg, space, values[0], seeds[0])
    found = layouts(setting, trial, given)
    try:
        check_reference(shape, work, trial, assumed)
        chosen = choose(setting, found)
    except UserError:
        print(memory_text(setting, trial))  # where it would fit
        raise
    return Plan(setting, cfg, found, chosen, simulate(chosen.cfg, chosen.times), scaling(setting, cfg))


def check_modelled(cfg: RunConfig) -> None:
    """Raises UserError for a run of another kind than a plan is of: one whose trainers and engines have GPUs of their
    own."""
    if cfg.rollout.weight_transfer == "ipc":
        raise UserError(
            "rollout.weight_transfer=ipc: engines on their trainers' GPUs are not modelled: leave it out, or set nccl "
            "or object_store"
        )
    if not cfg.train.use_gpu:
        raise UserError("train.use_gpu=false: a plan is of training on GPUs: leave it out")


def _layout_keys() -> list[str]:
    keys = ("num_actors", "tensor_parallel_size", "group_size", "num_gpus")
    return ["train.num_workers", *(f"rollout.{key}" for key in keys)]


def case_work(cfg: RunConfig, assumed: Assumptions, tokenizer: str | None) -> CaseWork:
    """The cases' tokens: counted where there are cases (task.path, or the bundled task), else as assumed.

    Raises UserError where cases are given without a tokenizer to count them with.
    """
    if cfg.task.name != "organism" and cfg.task.path is None:
        open_task(cfg.task)  # refuses an unknown name
        return assumed_work(assumed, cfg.task)
    folder = tokenizer or (str(BUNDLED[cfg.policy]) if cfg.policy in BUNDLED else cfg.policy)
    if not Path(folder, "tokenizer_config.json").is_file():
        raise UserError(
            f"task {cfg.task.name} has cases to count, but {folder!r} is no folder with a tokenizer: "
            "give --tokenizer FOLDER"
        )
    reader: Any = load_tokenizer(folder)
    train, test = (
        CaseTable.build(tokenize_case(case, reader, cfg.task.answer_prefix) for case in side)
        for side in load_cases(cfg.task)
    )
    source = f"{len(train)} training cases, tokenizer {folder}"
    return measured_work(source, train, model_len(cfg, (train, test)), len(test), assumed.prefix_block)
