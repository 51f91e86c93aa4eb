"""The command `reproduce`: what is missing is run, everything is analysed, and the report is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from introspect_ray import __version__
from introspect_ray.cli import Arguments
from introspect_ray.errors import UserError
from introspect_ray.experiments import organisms
from introspect_ray.experiments.catalogue import EXPERIMENTS, chosen
from introspect_ray.experiments.claims import frozen_in, load_claims
from introspect_ray.experiments.plan import Planned, check_files, organisms_of, plan
from introspect_ray.experiments.protocol import Experiment, Study
from introspect_ray.experiments.report import Page, Section, page
from introspect_ray.experiments.results import Judging, section
from introspect_ray.experiments.settings import Settings, load_settings
from introspect_ray.runs.batch import has_result, result_of, run_batch
from introspect_ray.runs.search_space import by_setup
from introspect_ray.storage import is_remote, open_store
from introspect_ray.storage.claim import held
from introspect_ray.storage.output_folder import check_output, prepare_output

TRIAL_S, SETUP_S, EVALUATION_S = 24.0, 20.0, 30.0  # on two cores, for --dry-run; replaced by what was measured in OUT
ASSUMED = "an assumption"
_CALLS = "calls.json"
REPORT = "report.html"


def reproduce_job(args: Arguments) -> None:
    """Run what the named experiments lack, then write report.html over all experiments that have results.

    Raises UserError for an unknown name, a setting or claim that is wrong, an OUT in which another call is at work,
    and, after the report is written, if runs failed for other reasons than an alarm.
    """
    experiments = chosen(args.names)
    settings = load_settings(args.flags["settings"])
    out = _output(args)
    for members in _planned(experiments, settings, out).values():
        check_files(members, out)
    if args.dry_run:
        print(_estimate(experiments, settings, out))
        return
    with held(out, "reproduce"):
        errors = _reproduce(args, experiments, settings, out)
    if errors:
        raise UserError(f"{len(errors)} runs failed, the first with: {errors[0]}; call again to run them again")


def _reproduce(args: Arguments, experiments: Sequence[Experiment], settings: Settings, out: Path) -> list[str]:
    """Returns the errors of runs that failed for other reasons than an alarm."""
    prepare_output(out, resume=True)
    seconds: dict[str, float] = {}
    errors: list[str] = []
    ran = 0
    if not args.flags["only_report"]:
        began = time.perf_counter()
        studies = _studies(experiments, settings)
        organisms.build_organisms(organisms_of(studies, settings), studies, out, _say)
        seconds["organisms"] = time.perf_counter() - began
        began = time.perf_counter()
        ran, errors = _run(experiments, settings, out)
        seconds["runs"] = time.perf_counter() - began
    began = time.perf_counter()
    sections = _sections(experiments, settings, out)
    seconds["analysis and figures"] = time.perf_counter() - began
    _write_report(sections, seconds, ran, out, experiments, args.flags["settings"])
    return errors


def _output(args: Arguments) -> Path:
    """The local folder OUT. Raises UserError for arguments without effect, and for a folder that is not for this."""
    used = [f"--{name}" for name in ("config", "resume", "overwrite") if getattr(args, name)]
    if unknown := [*sorted(args.overrides.keys() - {"output_dir"}), *used]:
        raise UserError(
            f"reproduce takes output_dir=FOLDER, --settings, --dry-run and --only-report alone, not {unknown[0]}: put "
            "config keys into --settings FILE; what is finished in output_dir is kept, what is missing is run"
        )
    given = args.overrides.get("output_dir", "runs/reproduce")
    if not isinstance(given, str) or is_remote(given):
        raise UserError(f"output_dir={given}: reproduce needs a local folder, which all nodes share on a cluster")
    out = Path(given).expanduser().absolute()
    check_output(out, resume=True)
    return out


def _studies(experiments: Sequence[Experiment], settings: Settings) -> list[Study]:
    return [study for experiment in experiments for study in experiment.studies(settings)]


def _planned(experiments: Sequence[Experiment], settings: Settings, out: Path) -> dict[str, list[Planned]]:
    return {one.name: plan(one.studies(settings), settings, out) for one in experiments}


def _run(experiments: Sequence[Experiment], settings: Settings, out: Path) -> tuple[int, list[str]]:
    """Run what is missing, stage by stage; returns how many runs there were, and errors that are no alarms."""
    runs = _distinct([one for members in _planned(experiments, settings, out).values() for one in members])
    ran, errors = 0, list[str]()
    for stage in sorted({one.stage for one in runs}):
        due = [one for one in runs if one.stage == stage and not has_result(one.cfg) and _ready(one)]
        ran += len(due)
        trainings = [one.cfg for one in due if not one.study.evaluate]
        evaluations = [one.cfg for one in due if one.study.evaluate]
        if due:
            _say(f"{len(trainings)} trainings on {len(by_setup(trainings))} set-ups, {len(evaluations)} evaluations")
        errors += run_batch(trainings, evaluations, _say)
    return ran, errors


def _ready(one: Planned) -> bool:
    """Whether the policies that it needs are there."""
    return all(Path(folder, "policy").is_dir() for folder in one.needs)


def _distinct(planned: Sequence[Planned]) -> list[Planned]:
    """Each run once: figures share runs."""
    return list({one.cfg.output_dir: one for one in planned}.values())


def _sections(experiments: Sequence[Experiment], settings: Settings, out: Path) -> list[Section]:
    """Of the experiments of this call, and of all others that have results in OUT."""
    judging = Judging(load_claims(), frozen_in(), settings.check_worlds)
    named = {one.name for one in experiments}
    found = []
    for experiment in EXPERIMENTS.values():
        planned = plan(experiment.studies(settings), settings, out)
        if experiment.name in named or (out / experiment.name / "rows.json").is_file():
            found.append(section(experiment, planned, out, judging))
            _say(f"{experiment.name}: {', '.join(one.verdict.word for one in found[-1].judged) or found[-1].state}")
    return found


def _write_report(
    sections: Sequence[Section],
    seconds: Mapping[str, float],
    ran: int,
    out: Path,
    experiments: Sequence[Experiment],
    settings: str | None,
) -> None:
    about = _about(settings)
    calls = json.loads((out / _CALLS).read_text()) if (out / _CALLS).is_file() else []
    calls.append({**about, "experiments": [one.name for one in experiments], "runs": ran, "seconds": dict(seconds)})
    store = open_store(out)
    store.write_json(_CALLS, calls)
    about["runs made at"] = ", ".join(dict.fromkeys(call["commit"] for call in calls if call["runs"])) or "no commit"
    total: dict[str, float] = {}
    for call in calls:
        for part, value in call["seconds"].items():
            total[part] = total.get(part, 0.0) + value
    store.write_bytes(REPORT, page(Page(about, total, sections)).encode())
    spent = ", ".join(f"{part} {value:.1f} s" for part, value in seconds.items())
    print(f"{ran} runs; {spent}\nreport   {out / REPORT}", flush=True)


def _about(settings: str | None) -> dict[str, str]:
    """Date, machine, commit, version, and whether the settings are those that the claims were written for."""
    return {
        "settings": f"{settings}: not those that the claims were written for" if settings else "the package's",
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "commit": _commit(),
        "package": f"introspect-ray {__version__}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> str:
    """The commit of the code, with "+ changes" if files under version control differ from it."""
    folder = str(Path(__file__).parent)
    try:
        head = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=60
        )
        changed = subprocess.run(["git", "-C", folder, "diff", "--quiet", "HEAD"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "no git"
    if head.returncode:
        return "not under version control"
    return head.stdout.strip() + (" + changes" if changed.returncode else "")


def _estimate(experiments: Sequence[Experiment], settings: Settings, out: Path) -> str:
    """--dry-run: the runs per experiment, how many of them are missing, and an estimate of the time."""
    planned = _planned(experiments, settings, out)
    lines = [
        f"{name}: {len(of)} runs, {sum(not has_result(one.cfg) for one in of)} missing" for name, of in planned.items()
    ]
    every = _distinct([one for of in planned.values() for one in of])
    missing = [one for one in every if not has_result(one.cfg)]
    trainings = [one.cfg for one in missing if not one.study.evaluate]
    setups = sum(len(by_setup([one.cfg for one in missing if one.stage == stage and not one.study.evaluate]))
                 for stage in {one.stage for one in missing})  # fmt: skip
    evaluations = len(missing) - len(trainings)
    studies = _studies(experiments, settings)
    unbuilt = organisms.missing_organisms(organisms_of(studies, settings), studies, out)
    trial, measured = _seconds_per_trial(every)
    real = any(study.organism and settings.is_real(study.organism.kind) for study in studies)
    building = len(unbuilt) * organisms.SECONDS / min(organisms.AT_ONCE, os.cpu_count() or 1)
    total = len(trainings) * trial + setups * SETUP_S + evaluations * EVALUATION_S + building
    return "\n".join([
        *lines,
        f"together {len(every)} different runs, {len(missing)} missing: {len(trainings)} trainings on {setups} "
        f"set-ups, {evaluations} evaluations; {len(unbuilt)} organisms to build",
        "no estimate of the time: policies of your own, see `introspect-ray plan`" if real and measured == ASSUMED else
        f"about {total / 60:.0f} minutes at {trial:.0f} s per training ({measured})",
    ])  # fmt: skip


def _seconds_per_trial(planned: Sequence[Planned]) -> tuple[float, str]:
    found: list[float] = []
    for one in planned:
        summary: dict[str, Any] = result_of(one.cfg) or {}
        if "timing_s" in summary:
            found.append(summary["timing_s"]["total"] - summary["timing_s"]["setup"])
    if not found:
        return TRIAL_S, ASSUMED
    return sum(found) / len(found), f"mean of {len(found)} finished ones"


def _say(line: str) -> None:
    print(line, flush=True)
