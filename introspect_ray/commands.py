"""The console command `introspect-ray`; the files in jobs/ are the same commands for `ray job submit`.

A command imports what it needs when it runs, so that --help and --version answer at once.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from introspect_ray import __version__, cli
from introspect_ray.cli import Arguments, Flags
from introspect_ray.log_levels import set_level


def train(args: Arguments) -> None:
    """Train a policy to explain itself, and evaluate it: Self against Orig in summary.json."""
    from introspect_ray.runs.jobs import train_job

    train_job(args)


def sweep(args: Arguments) -> None:
    """Train one run per value of a config key and per seed, with M0 labelled once: sweep.json and sweep.png.

    introspect-ray sweep kl_weight=[0,1] seeds=[0,1,2]    the key that takes a list is swept; several make a joint grid
    introspect-ray sweep lambda                           the paper's values: lambda, agreement, alpha, lora_rank, lr
    introspect-ray sweep lambda kl_weight=[0,1]           what the named sweep fixes, with values of your own
    introspect-ray sweep kl_weight=loguniform(1e-3,10)    drawn at random (sweep.samples)

    As many trials run at once as the cluster has room for (sweep.trials_at_once).
    """
    from introspect_ray.runs.jobs import sweep_job
    from introspect_ray.runs.search_space import chosen_spaces

    sweep_job(args, chosen_spaces(args.names, args.overrides))


def evaluate(args: Arguments) -> None:
    """Evaluate a trained policy (eval.policy=FOLDER) against M0 (policy=...) on the held-out cases: evaluation.json.

    --from FOLDER alone: recompute the metrics of a finished run or evaluation from its evaluation/*.parquet and compare
    them with its summary.json and evaluation.json. Exit code 1: they differ. --inspect FILE.eval also writes its cases
    to a log that `inspect view` opens; it needs the extra `inspect`.
    """
    if args.flags["from"] is None and args.flags["inspect"] is None:
        from introspect_ray.runs.jobs import evaluate_job

        evaluate_job(args)
        return
    from introspect_ray.runs.recompute import recompute_job

    if not recompute_job(args):
        sys.exit(1)


def evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate`."""
    parser.add_argument("--from", metavar="FOLDER", help="recompute from the evaluated cases of a finished run")
    parser.add_argument("--inspect", metavar="FILE.eval", help="with --from: write the cases as a log of Inspect AI")


def label(args: Arguments) -> None:
    """Label all cases of a task by one policy, in bulk: y(x) and y(x∖C) of each case, as Parquet with provenance.

    A Ray Data pipeline on up to rollout.num_actors engines, which end with it. --resume labels only what is missing.
    The set also goes to cache_dir, where train, sweep and evaluate with the same policy, task and engine find it.
    """
    from introspect_ray.runs.bulk_label import label_job

    label_job(args)


def label_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `label`."""
    parser.add_argument("--explain", action="store_true", help="also generate the policy's explanation of each case")


def audit(args: Arguments) -> None:
    """Check a run's label table (output_dir=runs/x): provenance, versions, draws, steps. Exit code 1: violations."""
    from introspect_ray.labels.audit import audit_job

    if not audit_job(args):
        sys.exit(1)


def replay(args: Arguments) -> None:
    """Train a run again from its label table alone (source=runs/x output_dir=runs/x-replay) and compare the weights.

    Exit code 0: the same bits as the recorded policy (or none was recorded); 1: they differ.
    """
    from introspect_ray.runs.replay import replay_job

    if not replay_job(args):
        sys.exit(1)


def plan(args: Arguments) -> None:
    """What a run would need on GPUs that are not here: memory, split, work, and a lower bound of the λ sweep's cost.

    From a model's config alone. assume.NAME=VALUE replaces an assumption (all are printed), task.path and --tokenizer
    give the cases themselves; every config key is an override as in a run.
    """
    from introspect_ray.planning.job import plan_job
    from introspect_ray.runs.search_space import PAPER_SWEEPS

    plan_job(args, PAPER_SWEEPS["lambda"])


def plan_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("--policy", metavar="NAME", help="a known model, a folder, a config.json or a hub id")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs to plan for (default 8)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer to count the tokens of task.path with")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON too")


def controls(args: Arguments) -> None:
    """What decides whether the gap of finished runs means what it says: numbers with intervals, and controls.json.

    introspect-ray controls runs/sweep                         all runs of a sweep, siblings by training
    introspect-ray controls runs/a runs/b --out runs/controls

    Explanations against siblings' behaviour, drift swap, a policy at the same distance, labels shuffled over cases,
    constant explainers, offsets refitted (task.calibration), second generation (reference_policy). From the evaluated
    cases of the runs alone, without policies.
    """
    from introspect_ray.experiments.controls_job import controls_job

    controls_job(args)


def controls_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `controls`."""
    parser.add_argument("--out", metavar="FOLDER", default="runs/controls", help="for controls.json (runs/controls)")


def status(args: Arguments) -> None:
    """What the running jobs do, from any terminal of a cluster's machine: steps, rates, metrics, who waits for what.

    introspect-ray status                              all clusters that run on this machine
    introspect-ray status ray_address=HOST:PORT        the one at that address, as in the job's config (or RAY_ADDRESS)
    """
    from introspect_ray.runs.status import status_job

    status_job(args)


def status_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `status`."""
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="print it again and again until no job runs")


def track(args: Arguments) -> None:
    """Tell MLflow what it was not told while a run went on without it. Exit code 1: some of it still waits.

    introspect-ray track --send runs/x                 a run, or a sweep with all its trials
    introspect-ray track --send runs/x --dry-run       what waits there
    """
    from introspect_ray.runs.track import track_job

    if not track_job(args):
        sys.exit(1)


def track_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `track`."""
    parser.add_argument("--send", metavar="FOLDER", help="the output_dir of a run or a sweep")


def quickstart(args: Arguments) -> None:
    """The main job on the bundled organism: λ = 0 and λ = 1 with fixed labels, then online relabelling at ν = 1.

    Writes runs/quickstart/{sweep.json,sweep.png}, online/summary.json and an MLflow store.
    """
    from introspect_ray.runs.quickstart import quickstart_job

    quickstart_job(args)


def reproduce(args: Arguments) -> None:
    """Run the paper's experiments by name, or all: numbers, figures, and report.html with a verdict on each claim.

    introspect-ray reproduce fig2 fig4 output_dir=runs/reproduce    what is finished there is not run again
    """
    from introspect_ray.experiments.job import reproduce_job

    reproduce_job(args)


def reproduce_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `reproduce`."""
    parser.add_argument("--settings", metavar="FILE", help="worlds, seeds, values, policies, over the own ones")
    parser.add_argument("--only-report", action="store_true", help="run nothing: report on what is there")


class Command(NamedTuple):
    """A command: what it does with its arguments, and how they are read."""

    job: Callable[[Arguments], None]
    flags: Flags | None = None
    takes_names: bool = False
    go_on: str = ""  # how it goes on after SIGINT or SIGTERM


_RESUME = "go on with --resume"
COMMANDS = {
    "train": Command(train, go_on=_RESUME),
    "sweep": Command(sweep, takes_names=True, go_on=_RESUME),
    "evaluate": Command(evaluate, evaluate_flags, go_on=_RESUME),
    "label": Command(label, label_flags, go_on=_RESUME),
    "audit": Command(audit),
    "replay": Command(replay),
    "controls": Command(controls, controls_flags, takes_names=True),
    "plan": Command(plan, plan_flags),
    "status": Command(status, status_flags),
    "track": Command(track, track_flags),
    "quickstart": Command(quickstart, go_on=_RESUME),
    "reproduce": Command(reproduce, reproduce_flags, takes_names=True, go_on="the same command goes on"),
}


def run(name: str, argv: Sequence[str], prog: str | None = None, description: str | None = None) -> None:
    """Run a command on `argv`. Exits with 2 for bad input, with 1 for an alarm or a failed check, with 130 or 143
    after SIGINT or SIGTERM."""
    job, flags, takes_names, go_on = COMMANDS[name]
    text = description or inspect.getdoc(job) or ""

    def parsed() -> None:
        args = cli.parse(text, argv, flags, prog=prog, takes_names=takes_names)
        set_level(args.log_level)
        job(args)

    cli.run(parsed, go_on)


def main(argv: Sequence[str] | None = None) -> None:
    """`introspect-ray COMMAND ...`, `--help` or `--version`. argv: None is this process's."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        "introspect-ray",
        description="Train language models to explain which part of their input made them answer as they did.",
        epilog="introspect-ray COMMAND --help explains a command, --help SECTION the config keys of a section.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=16, width=120),
    )
    parser.add_argument("--version", action="version", version=f"introspect-ray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        summary = (inspect.getdoc(command.job) or "").split("\n")[0]
        commands.add_parser(name, help=summary.replace("%", "%%"), add_help=False).set_defaults(name=name)
    name = parser.parse_known_args(given[:1])[0].name
    run(name, given[1:], prog=f"introspect-ray {name}")
