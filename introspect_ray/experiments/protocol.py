"""What an experiment of the paper is made of: studies (what is run), runs (what came out), an outcome (what it says).

An experiment names its studies without running anything; `execute` runs those that are missing and hands the finished
runs to `analyse`. Nothing here imports Ray or a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from introspect_ray.config import RunConfig
from introspect_ray.runs.results import step_rows
from introspect_ray.scores.evaluated_cases import EvaluatedCases
from introspect_ray.scores.evaluation_table import EVALUATED, TRAINED, UNTRAINED, from_table, read_parquet
from introspect_ray.storage import open_store


class Organism(NamedTuple):
    """A model organism by what its builder needs; the settings may put a real model in the place of a whole kind."""

    kind: str = "hint"  # hint, cued, verdict, refusal, jabberwocky
    world: int = 0
    seed: int = 0  # of pretraining
    family: str = "qwen3"  # architecture

    @property
    def name(self) -> str:
        """Example: "hint-w2-s0-qwen3"; also the name of its folder."""
        return f"{self.kind}-w{self.world}-s{self.seed}-{self.family}"


class Trained(NamedTuple):
    """In a study's base or point: the policy that another study trained at `point`, with the same seed unless given."""

    study: str
    point: tuple[tuple[str, Any], ...] = ()  # items of the other study's point
    seed: int | None = None


class File(NamedTuple):
    """In a study's base or point: a file or folder of the study's organism, e.g. File("aux_chats.jsonl")."""

    name: str


@dataclass(frozen=True)
class Study:
    """Runs that differ in their points and seeds. Values are config values, `Trained` or `File`."""

    name: str  # unique within an experiment
    organism: Organism | None  # None: what the settings' section "bundled" says, the organism of the package
    base: Mapping[str, Any]  # overrides by dotted key, over the settings of the organism's kind
    points: tuple[Mapping[str, Any], ...] = ({},)  # overrides of each point
    seeds: tuple[int, ...] = (0,)
    evaluate: bool = False  # score eval.policy and train nothing: `evaluate` instead of `train`


class Estimated(Protocol):
    """A measured number with its interval: scores.statistics.Estimate, or anything with these fields."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def runs(self) -> int: ...  # that went in


@dataclass(frozen=True)
class Run:
    """A finished run. summary: summary.json, or evaluation.json of a study that only evaluates; {"failed": reason} of a
    run that an alarm stopped, which has neither cases nor policy."""

    study: str
    organism: Organism | None
    point: Mapping[str, Any]
    seed: int
    cfg: RunConfig
    folder: str  # local folder or s3:// address
    summary: Mapping[str, Any]

    @property
    def failed(self) -> str | None:
        """Why an alarm stopped the run; None if it finished."""
        return self.summary.get("failed")

    @property
    def policy(self) -> str:
        """The policy that the run is about: its own, or the one that was evaluated."""
        return self.cfg.eval.policy or self.cfg.policy if self.evaluated else open_store(self.folder).join("policy")

    @property
    def evaluated(self) -> bool:
        """Whether nothing was trained."""
        return "against" in self.summary

    def cases(self) -> EvaluatedCases:
        """The held-out cases with every policy's behaviour and the run's explanations, read once."""
        return self._cases

    def untrained(self) -> EvaluatedCases:
        """The held-out cases with the explanations of M0 before training. Of a training run."""
        return from_table(read_parquet(open_store(self.folder).read_bytes(UNTRAINED)))

    def steps(self) -> list[dict[str, Any]]:
        """The step metrics, in order (records.StepMetrics)."""
        return step_rows(open_store(self.folder))

    @cached_property
    def _cases(self) -> EvaluatedCases:
        name = EVALUATED if self.evaluated else TRAINED
        return from_table(read_parquet(open_store(self.folder).read_bytes(name)))

    def cached(self, name: str, inputs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The JSON result of a slow analysis of this run, kept in its folder under `name` and the digest of `inputs`.

        inputs: all that the result depends on beside the run (JSON values; policies by what identifies them). compute:
        called where the result is not there yet; returns JSON values without NaN.
        """
        text = json.dumps(dict(inputs), sort_keys=True, default=str)
        file = f"analyses/{name}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}.json"
        store = open_store(self.folder)
        if not store.exists(file):
            store.write_json(file, compute())
        return store.read_json(file)


Runs = Mapping[str, Sequence[Run]]  # finished runs by study, in the order of points and seeds


@dataclass(frozen=True)
class Outcome:
    """What an experiment says. rows: flat numbers, one row per result. draw: writes the figure to a path, whose suffix
    says the format; None: there is none. measured: by claim id, what claims.yaml's threshold is compared with."""

    rows: list[dict[str, Any]]
    draw: Callable[[Path], None] | None = None
    measured: Mapping[str, Estimated] = field(default_factory=dict)
    notes: Sequence[str] = ()  # what a reader must know: what was left out, which runs an alarm stopped


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper. studies: from the settings (settings.Settings), without running anything."""

    name: str  # "fig4"
    title: str
    published: str  # the paper's outcome, SPEC §7
    studies: Callable[[Any], list[Study]]
    analyse: Callable[[Runs], Outcome]
