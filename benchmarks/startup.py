"""Seconds until a command line answers, over those allowed: 0.5 s for `jobs/train.py --help`, 3 s for `--dry-run`.

The ratio is the larger of the two. Beside it stands how many starts of Python itself (`-c pass`) fit into each. The
fastest of seven runs in turn counts, with warm files, since other load on the machine only adds.

Also measured are the seconds until an engine of the organism can answer, in a process of its own and with imports: our
engine, and vLLM's own start (`vllm.LLM(model)`, which runs its core in another process, and compiles the model where
there is a compiler). Both are given the same longest sequence and KV cache. One start counts, after one that warms
files and vLLM's caches.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.common import ROOT, child, parser, policy_folder, report, run_main

NAME, GOAL = "startup", "<= 1"
ALLOWED = {"help": 0.5, "dry_run": 3.0}
RUNS = 7
ENGINES = ("ours", "default")
MAX_MODEL_LEN, KV_CACHE_BYTES = 64, 128 << 20


def start_engine(whose: str) -> None:
    """Start an engine in this process and print the time when it is up."""
    policy = policy_folder(small=True)
    if whose == "ours":
        from introspect_ray.config import RolloutConfig
        from introspect_ray.engines import make_engine

        engine = make_engine(RolloutConfig(kv_cache_bytes=KV_CACHE_BYTES), policy, max_model_len=MAX_MODEL_LEN)
    else:
        from vllm import LLM

        engine = LLM(policy, max_model_len=MAX_MODEL_LEN, kv_cache_memory_bytes=KV_CACHE_BYTES)
    print(f'{{"up": {time.time()}, "engine": "{type(engine).__name__}"}}', flush=True)


def engine_seconds(small: bool) -> dict[str, float]:
    """Seconds from the start of a process to its engine."""
    if not shutil.which("g++"):
        print("no g++ on the PATH: vLLM's own start may fail or fall back where it would compile", flush=True)
    seconds = {}
    for whose in ENGINES:
        for _ in range(1 if small else 2):  # the last one counts
            began = time.time()
            quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}  # vLLM logs to stdout, after our last line as well
            seconds[whose] = child(["-m", "benchmarks.startup", "--engine", whose], quiet)["up"] - began
        print(f"engine, {whose:7} {seconds[whose]:.2f} s", flush=True)
    return seconds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--engine", choices=ENGINES, help="start this engine in this process, and stop")
    args = arguments.parse_args()
    if args.engine:
        return start_engine(args.engine)
    fastest = command_seconds(args.small)
    engines = engine_seconds(args.small)
    report(
        NAME,
        max(fastest[name] / allowed for name, allowed in ALLOWED.items()),
        GOAL,
        **{f"{name}_s": value for name, value in fastest.items()},
        **{f"{name}_over_pass": fastest[name] / fastest["pass"] for name in ALLOWED},
        engine_s=engines["ours"],
        engine_default_s=engines["default"],
        engine_over_default=engines["ours"] / engines["default"],
    )


def command_seconds(small: bool) -> dict[str, float]:
    """The fastest run of each command line."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, whatever is installed
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "pass": ["-c", "pass"],
            "help": ["jobs/train.py", "--help"],
            "dry_run": ["jobs/train.py", "--dry-run", f"output_dir={folder}/out"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(-1, 1 if small else RUNS):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=True, capture_output=True)
                if run >= 0:  # the first only warms the files
                    seconds[name].append(time.perf_counter() - start)
    fastest = {name: min(values) for name, values in seconds.items()}
    for name, value in fastest.items():
        print(f"{name:8} {value:.3f} s (median {statistics.median(seconds[name]):.3f} s)", flush=True)
    return fastest


if __name__ == "__main__":
    run_main(main)
