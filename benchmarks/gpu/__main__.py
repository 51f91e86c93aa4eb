"""The training core on a GPU: correctness, compilations, step time and memory, in under ten minutes.

    python -m benchmarks.gpu [--json FILE] [--only PART ...] [--small]

It needs torch (2.11 or later), transformers and what the training core imports, under Python 3.11 or 3.12, and no
network. The part `engines` needs vLLM and Ray as well, and is left out where they are not installed. Every part runs in
a process of its own; the last line is a JSON object with the results of all. Exit code 1: a part failed, or something
in it is not as it should be. --small runs the same on a CPU, on tiny sizes, in a few seconds: its times are no results.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, last_object, parser, report, run_main
from introspect_ray.errors import UserError

PARTS = ("correctness", "compilations", "speed", "engines")  # modules with `measure(setting)`
NAME, GOAL = "gpu", ">= 1"  # the fastest loop of transformers alone over our step
WITHIN, ONE_WITHIN = 570.0, 270.0  # seconds for all parts, and for one of them


def main() -> None:
    args = _arguments()
    if not args.small:
        _check_device()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = args.folder or folder
        if args.part:
            print(json.dumps(_measure(args.part, folder, args.small)))
            return
        found = {}
        for part in args.only or PARTS:
            left = WITHIN - (time.monotonic() - began)
            found[part] = _run(part, folder, args.small, min(left, ONE_WITHIN))
            print(f"{part}: {_line(found[part])}", flush=True)
    seconds = time.monotonic() - began
    facts = {"seconds": seconds, "machine": _machine(args.small), **found}
    if args.json:
        Path(args.json).write_text(json.dumps({"name": NAME, **facts}, indent=2) + "\n")
    report(NAME, found.get("speed", {}).get("ratio"), GOAL, **facts)
    sys.exit(any(not row.get("ok", False) for row in found.values()))


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--json", metavar="FILE", help="write the results there too")
    arguments.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # measure it in this process, and stop
    arguments.add_argument("--folder", help=argparse.SUPPRESS)  # of policies and references
    return arguments.parse_args()


def _check_device() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no CUDA device: run this on a GPU, or with --small on a CPU")


def _run(part: str, folder: str, small: bool, seconds: float) -> dict[str, Any]:
    """What a part measured. Its failure is a result too: {"ok": False, "error": its last words}."""
    began = time.monotonic()
    if small:  # all in one process: imports take longer than the parts
        return _measure(part, folder, small) | {"seconds": time.monotonic() - began}
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--folder", folder]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1.0))
        if done.returncode:
            return {"ok": False, "error": f"exit code {done.returncode}: {done.stderr.strip()[-1500:]}"}
        return last_object(done.stdout) | {"seconds": time.monotonic() - began}
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not finished after {seconds:.0f} s"}


def _measure(part: str, folder: str, small: bool) -> dict[str, Any]:
    from benchmarks.gpu.setting import make_setting

    if part == "engines" and (missing := [n for n in ("ray", "vllm") if small or not importlib.util.find_spec(n)]):
        return {"ok": True, "left_out": f"needs {' and '.join(missing)} with CUDA"}
    return importlib.import_module(f"benchmarks.gpu.{part}").measure(make_setting(folder, small))


def _machine(small: bool) -> dict[str, Any]:
    import torch
    import transformers

    device = platform.machine() if small else torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": device, **versions, "transformers": transformers.__version__}


def _line(row: dict[str, Any]) -> str:
    """The plain values of a part's results."""
    plain = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain.items()
    )


if __name__ == "__main__":
    run_main(main)
