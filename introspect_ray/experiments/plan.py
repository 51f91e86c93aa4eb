"""From studies to runs: each one's config, its place by content, and what has to be there before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from introspect_ray import __version__
from introspect_ray.config import RunConfig, flatten, load_config, override
from introspect_ray.errors import UserError
from introspect_ray.experiments.protocol import File, Organism, Study, Trained
from introspect_ray.experiments.settings import Settings
from introspect_ray.policy import local_policy, policy_id

_FILES = ("task.path", "task.test_path", "auxiliary.path")
# Config keys that change nothing that is computed.
_FREE = ("output_dir", "cache_dir", "tracking", "ray_address", "wait_for_nodes", "stop_within_s", "patience_s",
         "train.max_failures")  # fmt: skip
_POLICIES = ("policy", "reference_policy", "supervision.second_policy", "eval.policy", "judge.policy")


@dataclass(frozen=True)
class Planned:
    """A run that an experiment needs. stage: 0, or one more than the latest run whose policy it uses."""

    study: Study
    point: Mapping[str, Any]
    seed: int
    cfg: RunConfig
    stage: int
    needs: tuple[str, ...]  # folders of the runs whose policies it uses


def plan(studies: Iterable[Study], settings: Settings, out: Path) -> list[Planned]:
    """The runs of one experiment, in order. Folders are OUT/runs/<key>, see `run_key`.

    Raises UserError for a study that uses a policy which none before it trains, or a config that does not validate.
    """
    planned: list[Planned] = []
    for study in studies:
        for point in study.points:
            planned += [_planned(study, point, seed, settings, out, planned) for seed in study.seeds]
    return planned


def check_files(planned: Iterable[Planned], out: Path) -> None:
    """Raises UserError for a file that the settings name and that is not there; organisms in OUT are built later."""
    for one in planned:
        flat = flatten(one.cfg.model_dump(mode="json"))
        for key in _FILES:
            if flat[key] and not Path(flat[key]).is_relative_to(out / "organisms") and not Path(flat[key]).exists():
                raise UserError(
                    f"{key}={flat[key]} of study {one.study.name} is not there: make it, or name another in --settings"
                )


def organism_folder(out: Path, organism: Organism) -> Path:
    """Where an organism is built."""
    return out / "organisms" / organism.name


def organisms_of(studies: Iterable[Study], settings: Settings) -> list[Organism]:
    """The organisms that have to be built, each once."""
    named = [study.organism for study in studies if study.organism and not settings.is_real(study.organism.kind)]
    return list(dict.fromkeys(named))


def _planned(
    study: Study, point: Mapping[str, Any], seed: int, settings: Settings, out: Path, before: Sequence[Planned]
) -> Planned:
    needed: list[Planned] = []

    def trained(one: Trained) -> str:
        found = _find(one, seed, before)
        needed.append(found)
        return f"{found.cfg.output_dir}/policy"

    given = {**_own(study, settings, out), **study.base, **point, "seed": seed}
    flat = {key: _resolved(value, study, settings, out, trained) for key, value in given.items()}
    cfg = load_config(overrides={**flat, "output_dir": str(out / "runs"), "cache_dir": str(out / "cache")})
    known = {f"{one.cfg.output_dir}/policy": Path(one.cfg.output_dir).name for one in before}
    key = run_key(cfg, known, "evaluate" if study.evaluate else "train")
    cfg = override(cfg, {"output_dir": str(out / "runs" / key)})
    stage = max((one.stage + 1 for one in needed), default=0)
    return Planned(study, point, seed, cfg, stage, tuple(one.cfg.output_dir for one in needed))


def _own(study: Study, settings: Settings, out: Path) -> dict[str, Any]:
    """The overrides by the study's organism: cases and policy of a built one, and the settings of its kind."""
    organism = study.organism
    if organism is None:
        return {**settings.run, **settings.kinds.get("bundled", {})}
    own = {**settings.run, **settings.kinds.get(organism.kind, {})}
    if settings.is_real(organism.kind):
        return own
    folder = organism_folder(out, organism)
    cases = {"task.name": "jsonl", "task.path": f"{folder}/train.jsonl", "task.test_path": f"{folder}/test.jsonl"}
    return {**cases, "policy": f"{folder}/policy", **own}


def _resolved(value: Any, study: Study, settings: Settings, out: Path, trained: Any) -> Any:
    if isinstance(value, Trained):
        return trained(value)
    if isinstance(value, File):
        if study.organism is None or settings.is_real(study.organism.kind):
            raise UserError(_no_file(value, study, settings))
        return str(organism_folder(out, study.organism) / value.name)
    if isinstance(value, (list, tuple)):
        return [_resolved(one, study, settings, out, trained) for one in value]
    return value


def _no_file(file: File, study: Study, settings: Settings) -> str:
    """What to do where a part of the settings names a file of an organism, and no organism is built."""
    parts = [name for name in settings.parts if file in settings.part(name).values()]
    part = f"part{'s' if len(parts) > 1 else ''} {' and '.join(parts)} of the settings" if parts else "that"
    return (
        f"study {study.name} needs {file.name!r}, a file of an organism, and its kind has a real policy: give {part} a "
        "file or a hub set of your own in --settings"
    )


def _find(one: Trained, seed: int, before: Sequence[Planned]) -> Planned:
    wanted = seed if one.seed is None else one.seed
    for planned in before:
        if (planned.study.name, dict(planned.point), planned.seed) == (one.study, dict(one.point), wanted):
            return planned
    raise UserError(f"no study {one.study!r} before this one trains at {dict(one.point)} with seed {wanted}")


def run_key(cfg: RunConfig, known: Mapping[str, str], what: str) -> str:
    """What a run's folder is named by: a digest of its config without folders, of the content of its case files and
    policies, and of the package's version.

    known: by address of a policy, the key of the run that trains it. what: "train" or "evaluate". A file that is not
    there yet counts by its name, so its runs are none that were made.
    """
    flat = {key: value for key, value in flatten(cfg.model_dump(mode="json")).items() if not key.startswith(_FREE)}
    for key in _POLICIES:
        if flat.get(key):
            flat[key] = _policy(flat[key], known)
    flat["eval.against"] = [_policy(name, known) for name in flat["eval.against"]]
    for key in _FILES:
        if flat[key]:
            flat[key] = _digest(flat[key])
    text = json.dumps([what, __version__, flat], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _policy(name: str, known: Mapping[str, str]) -> str:
    """The identity of a policy: the run that trains it, its content where it is on this machine, else its name."""
    if name in known:
        return f"run {known[name]}"
    bundled = name.partition(":")[0] == RunConfig.model_fields["policy"].default
    return _content(name) if bundled or Path(name).is_dir() else name


@cache
def _content(policy: str) -> str:
    return policy_id(local_policy(policy))


@cache
def _digest(file: str) -> str:
    path = Path(file)
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else f"not there: {file}"
