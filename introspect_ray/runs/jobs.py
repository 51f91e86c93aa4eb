"""The commands train, sweep and evaluate: load the config, refuse what is wrong, run, print where the results are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from introspect_ray import signals
from introspect_ray.cli import Arguments
from introspect_ray.config import RunConfig, load_config, override
from introspect_ray.errors import UserError
from introspect_ray.runs.complete import finished
from introspect_ray.runs.identity import check_resume
from introspect_ray.runs.preflight import Prepared, doubts, prepare
from introspect_ray.runs.printed import print_plan, print_summaries, report_findings, report_sweep
from introspect_ray.runs.results import log_files, open_tracker, track_aggregate, warned
from introspect_ray.runs.search_space import Space, Trial, grid, load_grid, shared_config
from introspect_ray.storage import Store, is_remote, open_store
from introspect_ray.storage.checkpoints import list_names
from introspect_ray.storage.claim import check_free, held
from introspect_ray.storage.output_folder import check_output, prepare_output
from introspect_ray.storage.tracking import tracking_uri
from introspect_ray.storage.tracking_store import check_server, import_ahead


def train_job(args: Arguments) -> None:
    """One run. Raises UserError before anything heavy starts and before anything is written."""
    cfg = load_config(args.config, args.overrides)
    checked = check(cfg, [cfg], resume=args.resume, overwrite=args.overwrite)
    if args.dry_run:
        print_plan([cfg], checked.prepared)
        return
    store, tracked = open_store(cfg.output_dir), checked.tracking or "none"
    if args.resume and finished(cfg) is not None:
        print(f"already finished: {store.join('summary.json')}")
        return
    print_summaries([run_training(cfg, checked)], "kl_weight")
    print(f"summary  {store.join('summary.json')}\npolicy   {store.join('policy')}\ntracking {tracked}")


def sweep_job(
    args: Arguments,
    spaces: Sequence[Space],
    after: Callable[..., None] | None = None,
    output_dir: str | None = None,
) -> list[dict[str, Any]] | None:
    """All trials of a sweep over one key or of a joint grid, on one set of engines.

    `output_dir`: where the results go unless the user says otherwise (None: runs/sweep_<keys>). `after`: see
    run_trials. Raises UserError before anything heavy starts.
    """
    defaults = {"output_dir": output_dir or f"runs/sweep_{'_'.join(space.leaf for space in spaces)}"}
    sweep = Sweep(tuple(spaces), *load_grid(spaces, args.config, args.overrides, defaults))
    configs = [trial.cfg for trial in sweep.trials]
    checked = check(sweep.cfg, configs, resume=args.resume, overwrite=args.overwrite)
    if args.dry_run:
        print_plan(configs, checked.prepared)
        return None
    summaries = run_trials(sweep, checked, after)
    store = open_store(sweep.cfg.output_dir)
    tracked = checked.tracking or "none"
    print(f"numbers  {store.join('sweep.json')}\nfigure   {store.join('sweep.png')}\ntracking {tracked}")
    return summaries


def evaluate_job(args: Arguments) -> None:
    """Metrics of eval.policy (default: M0 itself) against M0 on the held-out cases, to evaluation.json."""
    cfg = load_config(args.config, args.overrides, {"output_dir": "runs/evaluate"})
    with local_trained_policy(cfg, overwrite=args.overwrite) as local:
        checked = check_evaluation(local, resume=args.resume, overwrite=args.overwrite)
        if args.dry_run:
            print_plan([cfg], checked.prepared)
            return
        result = run_evaluation(cfg, local, checked)
    print(json.dumps(result, indent=2))
    print(f"written  {open_store(cfg.output_dir).join('evaluation.json')}")


# --- the work, shared with the Python API (api.py) ----------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What a run needs after all its checks."""

    prepared: Prepared
    tracking: str | None  # MLflow's URI
    resume: bool
    overwrite: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep: its keys, the values of each, the seeds, and the config of everything else."""

    spaces: tuple[Space, ...]
    values: list[list[Any]]
    seeds: list[int]
    cfg: RunConfig

    @property
    def trials(self) -> list[Trial]:
        return grid(self.cfg, self.spaces, self.values, self.seeds)


def check(cfg: RunConfig, trials: Sequence[RunConfig], *, resume: bool, overwrite: bool) -> Checked:
    """All that can be refused before anything starts. Writes nothing but caches. Raises UserError."""
    if cfg.task.shots:
        raise UserError(
            f"task.shots={cfg.task.shots} prompts a policy that is not trained: use it with `introspect-ray evaluate`, "
            "or leave it out"
        )
    warned(doubts(trials))
    prepared = prepare(shared_config(trials))
    return Checked(prepared, reachable(cfg, resume=resume, overwrite=overwrite), resume, overwrite)


def run_training(cfg: RunConfig, checked: Checked) -> dict[str, Any]:
    """Train and evaluate; returns the summary."""
    from introspect_ray.runs.driver import train_once
    from introspect_ray.runs.progress import progress_bar
    from introspect_ray.runs.setup import set_up

    with claimed(cfg, checked, "train") as store:
        if checked.resume and not list_names(store):
            print("resume   no checkpoint yet: from step 0", flush=True)
        with closing(set_up(cfg, checked.prepared)) as setup:
            report_findings(cfg, setup)
            with (
                open_tracker(cfg, _name(cfg), checked.tracking) as tracker,
                progress_bar(setup.status, cfg.steps, _name(cfg)),
                signals.gently(setup.status.halt.remote),
            ):
                return train_once(cfg, setup, tracker, run_name=_name(cfg))


def run_trials(sweep: Sweep, checked: Checked, after: Callable[..., None] | None = None) -> list[dict[str, Any]]:
    """Run all trials of a sweep that have no summary yet and print the table; returns the summaries.

    `after(cfg, setup, (tracking uri, parent run id))` runs on the same engines when the trials are done, with the
    first seed. Raises AlarmError if a trial was stopped, when the others' results are written.
    """
    from introspect_ray.runs.kept_workers import keeping
    from introspect_ray.runs.progress import progress_bar
    from introspect_ray.runs.setup import set_up
    from introspect_ray.runs.sweep import run_sweep

    cfg, spaces, trials = sweep.cfg, sweep.spaces, sweep.trials
    configs, values = [trial.cfg for trial in trials], sweep.values[0] if len(spaces) == 1 else sweep.values
    keys = ",".join(space.key for space in spaces)
    swept = {"sweep": {"key": keys, "values": str(values), "seeds": str(sweep.seeds)}}
    with (
        claimed(cfg, checked, "sweep", trials=configs) as store,
        closing(set_up(shared_config(configs), checked.prepared)) as setup,
        open_tracker(cfg, _name(cfg), checked.tracking, params=swept) as parent,
    ):
        tracking = (checked.tracking, parent.run_id)
        report_findings(cfg, setup)
        steps = sum(trial.cfg.steps for trial in trials) + bool(after) * cfg.steps
        with progress_bar(setup.status, steps, _name(cfg)), keeping(setup, cfg, bool(after)) as kept:
            summaries, stopped = run_sweep(cfg, spaces, trials, kept, tracking)
            if after and not any("failed" in row for row in stopped):
                after(override(cfg, {"seed": sweep.seeds[0]}), kept, tracking)
        track_aggregate(parent, store, cfg, [space.leaf for space in spaces])
        log_files(parent, ["sweep.json", *(["sweep.png"] if summaries else [])])
        if parent.page:
            print(f"compare  {parent.page}", flush=True)
        report_sweep(summaries, stopped, spaces, store)
    return summaries


@contextmanager
def local_trained_policy(cfg: RunConfig, *, overwrite: bool) -> Iterator[RunConfig]:
    """`cfg` with eval.policy on this machine. Raises UserError if it is not there or would be overwritten."""
    given = cfg.eval.policy or ""
    if overwrite and f"{given}/".startswith(f"{cfg.output_dir.rstrip('/')}/"):
        raise UserError(f"--overwrite would delete eval.policy={given} with {cfg.output_dir}: give another output_dir")
    if not is_remote(given):
        yield cfg
        return
    with tempfile.TemporaryDirectory() as folder:  # to check it, and to merge an adapter; each engine gets its own
        try:
            open_store(given).download_dir("", folder)
        except FileNotFoundError:
            raise UserError(f"eval.policy={given}: there is nothing; give the policy/ folder of a run") from None
        yield override(cfg, {"eval.policy": folder})


def check_evaluation(local: RunConfig, *, resume: bool, overwrite: bool) -> Checked:
    """As `check`, for an evaluation: it is tracked nowhere."""
    prepared = prepare(local, training=False)
    check_output(local.output_dir, resume=resume, overwrite=overwrite)
    check_free(local.output_dir)
    return Checked(prepared, None, resume, overwrite)


def run_evaluation(cfg: RunConfig, local: RunConfig, checked: Checked) -> dict[str, Any]:
    """Evaluate eval.policy; `local` is `cfg` with that policy on this machine. Returns evaluation.json."""
    from introspect_ray.runs.evaluate import evaluate_policies

    with claimed(cfg, checked, "evaluate", "evaluation_run.json") as store:  # run.json may be that of the run beside it
        trained = cfg.eval.policy or cfg.policy
        result = {"policy": trained, **evaluate_policies(cfg, checked.prepared, local.eval.policy, store)}
        store.write_json("evaluation.json", result)
    return result


@contextmanager
def claimed(
    cfg: RunConfig, checked: Checked, what: str, record: str = "run.json", trials: Sequence[RunConfig] = ()
) -> Iterator[Store]:
    """Join or start Ray, claim the output folder for this job, prepare it, and write the resolved config to its file
    `record`. what: the command.

    Nothing is written before the cluster is known to have room for the run, or for a trial (`trials`: of a sweep).
    """
    from introspect_ray.runs.cluster import connected

    # The stack ends last: the folder is given up when nothing of this job is left that could write.
    with ExitStack() as last, connected(shared_config(trials) if trials else cfg, trials):
        last.enter_context(held(cfg.output_dir, what))
        store = prepare_output(cfg.output_dir, resume=checked.resume, overwrite=checked.overwrite)
        store.write_json(record, cfg.model_dump(mode="json"))
        print(f"output   {store.join()}", flush=True)
        if checked.tracking is not None:
            import_ahead(checked.tracking)  # while the engines start
        yield store


def reachable(cfg: RunConfig, *, resume: bool, overwrite: bool) -> str | None:
    """Check output folder and tracking store without changing either; returns the tracking URI. Raises UserError."""
    check_output(cfg.output_dir, resume=resume, overwrite=overwrite)
    check_free(cfg.output_dir)
    if resume:
        check_resume(cfg)
    if cfg.tracking.backend != "mlflow":
        return None
    uri = tracking_uri(cfg.tracking, cfg.output_dir)
    check_server(uri, required=not resume)
    return uri


def _name(cfg: RunConfig) -> str:
    return cfg.output_dir.rstrip("/").rsplit("/", 1)[-1]
