"""One online step in this process, followed from file to file: see benchmarks/structure.py."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import introspect_ray

WARM_UP = 2  # steps before the one that is followed: imports and caches are theirs


class Moves:
    """A profile function that counts the package's files in the order in which calls and returns visit them."""

    def __init__(self) -> None:
        self.at, self.files, self.moves, self.between_rooms = "", Counter[str](), 0, 0
        self._root = str(Path(introspect_ray.__file__).parent) + "/"

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        caller = frame if event == "call" else frame.f_back
        if event not in ("call", "return") or caller is None:
            return
        name = caller.f_code.co_filename
        if not name.startswith(self._root):
            return
        name = name.removeprefix(self._root)
        self.files[name] += event == "call"
        if name != self.at:
            if self.at:
                self.moves += 1
                self.between_rooms += name.split("/")[0] != self.at.split("/")[0]
            self.at = name


def trace_step() -> dict[str, Any]:
    """Files, moves and moves between rooms of one step of 8 cases of the bundled organism, labelled by the learner."""
    from introspect_ray.actors.relabeler import Relabeler
    from introspect_ray.cases.table import CaseTable
    from introspect_ray.cases.tokenize import tokenize_case
    from introspect_ray.config import load_config
    from introspect_ray.engines import make_engine
    from introspect_ray.labels.rules import Sources
    from introspect_ray.loop import run
    from introspect_ray.policy import load_tokenizer, local_policy
    from introspect_ray.records import BehaviorPair, StepLabels
    from introspect_ray.tasks import load_cases
    from introspect_ray.training.learner import Learner
    from introspect_ray.training.reference import build_reference

    online = {"supervision.rule": "online", "rollout.engine": "learner", "rollout.serving_engine": "transformers"}
    cfg = load_config(None, {"steps": WARM_UP + 1, "batch_size": 8, "task.train_cases": 64, **online})
    path = local_policy(cfg.policy)
    tokenizer = load_tokenizer(path)
    train = CaseTable.build(tokenize_case(case, tokenizer) for case in load_cases(cfg.task)[0])
    engine = make_engine(cfg.rollout, path, max_model_len=64)
    m0 = {pair.case_id: pair for pair in engine.label_pairs(list(train))}
    moves = Moves()

    class InProcess:
        """The loop's Supply around the real relabeler; profiling begins when the step to follow is offered."""

        def __init__(self, folder: str) -> None:
            self.relabeler = Relabeler(cfg, Sources(train.labels, cfg.policy, m0), folder)
            self.events = asyncio.new_event_loop()
            self.events.run_until_complete(self.relabeler.enter(1))

        def offer(self, step: int, version: int, pairs: Sequence[BehaviorPair]) -> None:
            self.events.run_until_complete(self.relabeler.offer(step, version, 0, pairs))

        def fetch(self, step: int) -> StepLabels:
            return self.events.run_until_complete(self.relabeler.fetch(step, 0))

    def report(row: Any) -> None:
        if row.step == WARM_UP - 1:
            sys.setprofile(moves)

    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference(path, train, None, folder)
        learner = Learner(cfg, path, reference, train.by_id)
        supply: Any = InProcess(f"{folder}/labels")
        try:
            conductor: Any = SimpleNamespace(report=report, node_is_going=lambda: False)
            run(cfg, learner, supply, conductor, m0, train)
        finally:
            sys.setprofile(None)
            supply.events.close()
    return {"files": len(moves.files), "moves": moves.moves, "moves_between_rooms": moves.between_rooms}
