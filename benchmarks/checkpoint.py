"""Seconds of a checkpoint over those of the way it went before: 300 MB of weights and AdamW's state, into a folder.

    python -m benchmarks.checkpoint [--small] [--repeats N] [--folder FOLDER]

Before: written into the temporary folder by one thread and synced to disk, read to be hashed, read again to be copied.
Now: written by several threads beside its place, unsynced, read once to be hashed, moved. Both sides go on until the
checkpoint is finished, with the same tensors, and must list the same number of bytes of tensors. They take turns; the
ratio is of the fastest of each, `seconds` has all. `stall_s`: what `save` keeps training waiting. The temporary folder
is on the disk that TMPDIR names, the results on that of --folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from benchmarks.common import parser, report, run_main
from introspect_ray.storage import open_store
from introspect_ray.storage.checkpoints import CheckpointWriter, Saved
from introspect_ray.training.fsdp import load_checkpoint, save_checkpoint

NAME, GOAL = "checkpoint", "<= 0.7"
WIDTH = 1024  # a layer has 4 MiB of float32 weights; with AdamW's two moments 12


class State:
    """A stack of square layers and AdamW, as save_checkpoint takes them, after one step that fills the moments."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        self.module: Any = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.module.parameters())
        for weight in self.module.parameters():
            weight.grad = torch.randn(WIDTH, WIDTH)
        self.optimizer.step()


def before(state: State, out: Path) -> float:
    """The old way, step by step; returns the seconds for which training stood still."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        parts = {"model": state.module.state_dict(), "optimizer": _optimizer_state(state)}
        filled = dcp.async_save(parts, checkpoint_id=scratch, no_dist=True)
        stalled = time.perf_counter() - began
        filled.result()
        for file in sorted(Path(scratch).iterdir()):
            digest = hashlib.blake2b(digest_size=16)
            with file.open("rb") as source:
                while piece := source.read(1 << 22):
                    digest.update(piece)
        open_store(out).upload_dir(scratch, "checkpoints/step-00000001")
    return stalled


def now(state: State, out: Path) -> float:
    """The way of a run; returns the seconds for which training stood still."""
    saved: list[Saved] = []
    writer = CheckpointWriter(str(out), {}, 0, 1, None)
    writer.on_saved = saved.append
    writer.save(1, lambda folder: save_checkpoint(folder, state.module, state.optimizer, None))
    writer.wait()
    return saved[0].stall_s


def _optimizer_state(state: State) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return dict(get_optimizer_state_dict(state.module, state.optimizer))


def timed(save: Callable[[State, Path], float], state: State, folder: Path) -> tuple[float, float, int]:
    """(seconds, seconds that training stood still, bytes of tensors) of one checkpoint, which is deleted again."""
    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        began = time.perf_counter()
        stalled = save(state, out)
        seconds = time.perf_counter() - began
        return seconds, stalled, sum(file.stat().st_size for file in out.rglob("*.distcp"))
    finally:
        shutil.rmtree(out)


def restored(layers: int, folder: Path) -> bool:
    """Whether a checkpoint of the new way gives back the same weights."""
    first, second = State(layers), State(layers)
    with torch.no_grad():
        for weight in second.module.parameters():
            weight.zero_()
    out = Path(tempfile.mkdtemp(dir=folder))
    try:
        now(first, out)
        load_checkpoint(str(out / "checkpoints/step-00000001"), second.module, second.optimizer)
    finally:
        shutil.rmtree(out)
    return all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--folder", type=Path, default=Path("."), help="on the disk of the results")
    args = arguments.parse_args()
    layers, repeats = (2, 2) if args.small else (25, args.repeats)
    state = State(layers)
    if not restored(2, args.folder):
        raise SystemExit("checkpoint: the restored weights differ")
    runs = {"before": [], "now": []}
    for _ in range(repeats):
        runs["before"].append(timed(before, state, args.folder))
        runs["now"].append(timed(now, state, args.folder))
    sizes = {side: round(max(run[2] for run in some) / 1e6) for side, some in runs.items()}
    if abs(sizes["before"] - sizes["now"]) > 1:
        raise SystemExit(f"checkpoint: the two sides wrote {sizes} MB of tensors")
    best = {side: min(run[0] for run in some) for side, some in runs.items()}
    report(
        NAME,
        best["now"] / best["before"],
        GOAL,
        megabytes=sizes["now"],
        seconds={side: [run[0] for run in some] for side, some in runs.items()},
        stall_s={side: min(run[1] for run in some) for side, some in runs.items()},
    )


if __name__ == "__main__":
    run_main(main)
