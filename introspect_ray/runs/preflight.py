"""Everything that can be refused before anything heavy starts: policies, cases, tokens, stores, room."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import RunConfig, flatten
from introspect_ray.config.compatibility import learner_labels, trainer_gpus
from introspect_ray.engines import check_installed
from introspect_ray.engines.checks import check_vllm_limits
from introspect_ray.errors import UserError
from introspect_ray.policy import check_policy, is_adapter, local_policy, policy_id
from introspect_ray.storage import check_writable, open_store
from introspect_ray.tasks import load_cases

OVERSUBSCRIPTION = 2  # trainer and engine take turns at lag 0, so a core serves two logical CPUs
MIN_CORES = 2  # the smallest machine the defaults are made for


@dataclass(frozen=True)
class Prepared:
    """A validated run: where the policies lie and what their cases are as tokens."""

    policy_path: str
    policy_id: str  # content hash
    second_path: str | None
    second_id: str | None
    train: CaseTable
    test: CaseTable
    tokenizer: Any
    max_model_len: int
    max_explanation_tokens: int
    cache_uri: str


def prepare(cfg: RunConfig, *, engines: bool = True) -> Prepared:
    """Resolve and check all inputs of a run. Raises UserError with the remedy; writes nothing but caches.

    engines False: none is started (a replay), so that neither they nor what they alone would serve has to be here.
    """
    cache = cfg.cache_dir or f"{cfg.output_dir.rstrip('/')}/cache"
    second = cfg.supervision.second_policy if engines and cfg.supervision.rule == "mixed" else None
    trained = None if cfg.eval.policy is None or is_adapter(cfg.eval.policy) else cfg.eval.policy
    others = [name for name in (second, trained, *cfg.eval.against) if engines and name]
    for name in (cfg.policy, *others):
        check_policy(name)
    if engines:
        check_engine(cfg)
    if cluster_address(cfg) is None:
        check_local_room(cfg)
    train, test = load_cases(cfg.task)
    check_writable(cfg.output_dir)
    policy_path = local_policy(cfg.policy)
    second_path = local_policy(second) if second else None
    tokenizer = load_tokenizer(policy_path)
    for other in others:
        _check_same_tokens(tokenizer, policy_path, local_policy(other))
    tables = [
        CaseTable.build(tokenize_case(case, tokenizer, cfg.task.answer_prefix) for case in side)
        for side in (train, test)
    ]
    if cfg.rollout.served_by == "vllm":
        label_ids = (answers.label_ids for table in tables for answers in table.answers)
        check_vllm_limits(label_ids, cfg.lora_rank if cfg.method == "lora" else 0)
    return Prepared(
        policy_path=policy_path,
        policy_id=policy_id(policy_path),
        second_path=second_path,
        second_id=policy_id(second_path) if second_path else None,
        train=tables[0],
        test=tables[1],
        tokenizer=tokenizer,
        max_model_len=model_len(cfg, tables),
        max_explanation_tokens=_new_tokens(cfg, tables),
        cache_uri=cache,
    )


# What may differ between a run and its resumption without changing what it computes.
_FREE = (
    "output_dir",
    "ray_address",
    "wait_for_nodes",
    "tracking",
    "cache_dir",
    "train.max_failures",
    "train.checkpoint_every",
    "alarms",
    "rollout.weight_transfer",
    "rollout.probe_tolerance",
)


def check_resume(cfg: RunConfig) -> None:
    """Refuse to resume a run of another config; an empty folder is fine. Raises UserError naming the first such key."""
    store = open_store(cfg.output_dir)
    if not store.exists("run.json"):
        return
    before, now = flatten(store.read_json("run.json")), flatten(cfg.model_dump(mode="json"))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(_FREE):
            raise UserError(
                f"cannot resume {cfg.output_dir}: {key} was {before.get(key)!r} and is now {now.get(key)!r}; "
                "give the same config, or another output_dir"
            )


def run_identity(cfg: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What a checkpoint must share with a run to be its own: the config, but for what may differ, and the content
    behind it (policies and training cases). JSON values by name, so that a refusal can say which one differs."""
    digest = hashlib.blake2b(digest_size=8)
    for case in prepared.train:
        line = [case.case_id, case.labels, case.prompt, case.ablated, case.question]
        digest.update(json.dumps(line).encode() + b"\n")
    config = {key: value for key, value in flatten(cfg.model_dump(mode="json")).items() if not key.startswith(_FREE)}
    content = {"policy": prepared.policy_id, "second policy": prepared.second_id, "training cases": digest.hexdigest()}
    return {**config, **{f"content of {what}": value for what, value in content.items()}}


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a policy folder. Raises UserError if it cannot be read."""
    try:
        return _tokenizer_class(path).from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"policy {path!r}: its tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _tokenizer_class(path: str) -> Any:
    """What AutoTokenizer would choose, without it where the folder says so: it imports torch and scikit-learn
    before it looks (4 CPU seconds), and what transformers 5 saved as a TokenizersBackend needs neither."""
    config = Path(path) / "tokenizer_config.json"
    saved = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    if saved.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in saved:
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def check_engine(cfg: RunConfig) -> None:
    """Refuse an engine that is not installed. Raises UserError with the remedy."""
    if cluster_address(cfg) is None:
        check_installed(cfg.rollout)


def _check_same_tokens(tokenizer: Any, path: str, other: str) -> None:
    """Policies exchange token ids: another vocabulary or chat template would give labels of other text."""
    theirs = load_tokenizer(other)
    for what, same in (
        ("vocabulary", tokenizer.get_vocab() == theirs.get_vocab()),
        ("chat template", tokenizer.chat_template == theirs.chat_template),
    ):
        if not same:
            raise UserError(f"policy {other!r} has another {what} than {path!r}: use two policies of one tokenizer")


def _new_tokens(cfg: RunConfig, tables: Sequence[CaseTable]) -> int:
    return cfg.eval.max_new_tokens or max(table.longest_explanation for table in tables)


def model_len(cfg: RunConfig, tables: Sequence[CaseTable]) -> int:
    """Longest sequence an engine sees, of training and held-out cases: x and its answer, q and its explanation; in
    steps of 32. Raises UserError where rollout.max_model_len is less."""
    new_tokens = _new_tokens(cfg, tables)
    need = max(max(table.longest_sequence + 1, table.longest_question + new_tokens) for table in tables)
    given = cfg.rollout.max_model_len
    if given is not None and given < need:
        raise UserError(
            f"rollout.max_model_len={given}, but the longest case needs {need} tokens: raise it or leave it out"
        )
    return given or -(-need // 32) * 32


def resources(cfg: RunConfig) -> dict[str, float]:
    """Logical resources of a run at its widest: {"CPU", "GPU"}.

    Beside its engines are, first, the worker that makes the reference cache and a mixed run's second engine, and, when
    both have ended, the training workers.
    """
    cached, mixed = cfg.train.reference == "cache", cfg.supervision.rule == "mixed"

    def widest(trainer: float, engine: float) -> float:
        return cfg.rollout.num_actors * engine + max(cfg.train.num_workers * trainer, cached * trainer + mixed * engine)

    return {
        "CPU": widest(cfg.train.num_cpus, cfg.rollout.num_cpus),
        "GPU": widest(trainer_gpus(cfg), cfg.rollout.num_gpus),
    }


def plan_text(cfg: RunConfig, trials: int, train_cases: int, test_cases: int, longest: int) -> str:
    """What --dry-run and jobs/plan.py print: the resolved config, the resource budget and the placement."""
    need = resources(cfg)
    config = yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
    return (
        f"{config}\n"
        f"---\ntrials: {trials}  cases: {train_cases} train, {test_cases} test  longest sequence: {longest} tokens\n"
        f"budget: {need['CPU']:g} logical CPUs, {need['GPU']:g} GPUs\n"
        f"placement: {cfg.train.num_workers} training worker(s) x {cfg.train.num_cpus:g} CPU"
        f"{' + 1 GPU' if cfg.train.use_gpu else ''}; "
        f"{cfg.rollout.num_actors} {cfg.rollout.served_by} rollout actor(s) x {cfg.rollout.num_cpus:g} CPU + "
        f"{cfg.rollout.num_gpus:g} GPU; relabeler and status board: 0 CPU\n"
        f"labels: {_labelled_by(cfg)}"
    )


def _labelled_by(cfg: RunConfig) -> str:
    """Who makes the labels of a run, on which weights."""
    if cfg.supervision.rule != "online":
        return f"{cfg.supervision.rule}, once, by the rollout actors"
    who = "the rollout actors, weights are sent to them"
    if learner_labels(cfg):
        who = "the training workers, no weights are sent"
    every = f"every {cfg.rollout.sync_every} steps" if cfg.rollout.sync_every > 1 else "every step"
    return f"online, {every}, by {who}; lag {cfg.lag}"


def cluster_address(cfg: RunConfig) -> str | None:
    """The cluster a run joins; None: it starts a Ray of its own."""
    return cfg.ray_address or os.environ.get("RAY_ADDRESS")


def check_local_room(cfg: RunConfig) -> None:
    """Refuse a run that this machine has no room for. Raises UserError with the numbers."""
    need, cores = resources(cfg), os.cpu_count() or 1
    room = max(cores, MIN_CORES) * OVERSUBSCRIPTION
    if need["CPU"] > room:
        raise UserError(
            f"no room for the requested workers: train.num_workers={cfg.train.num_workers} and rollout.num_actors="
            f"{cfg.rollout.num_actors} need {need['CPU']:g} logical CPUs, this machine has {cores} cores, room for "
            f"{room}: lower them, or name a cluster with ray_address"
        )
    if need["GPU"]:
        import torch

        have = torch.cuda.device_count()
        if need["GPU"] > have:
            raise UserError(
                f"no room for the requested workers: the run needs {need['GPU']:g} GPUs, this machine has {have}: "
                "lower train.num_workers or rollout.num_actors, or name a cluster with ray_address"
            )
