"""A real job in a process of its own, seen from outside: its processes, its files, what it says and when."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from introspect_ray.storage import open_store
from introspect_ray.storage.store import TEMPORARY

REPO = Path(__file__).parents[2]
TITLES = {
    "engine": "ray::RolloutWorker",
    "relabeler": "ray::Relabeler",
    "training worker": "RayTrainWorker",
    "status board": "ray::StatusBoard",
    "trial": "ray::ImplicitFunc",
    "raylet": "raylet/raylet",
    "GCS": "gcs_server",
}
# A busy machine takes longer for everything; the goals of the issue are printed and not asserted.
PATIENCE_S = 300.0 * float(os.environ.get("CHAOS_PATIENCE", "1"))
_LOOK_S = 0.25
_BAR = re.compile(r"\d+/\d+ \[[\d?:]+<")  # e.g. "6/24 [00:15<00:45, 2.53s/step"


@dataclass
class Around:
    """What a job is put into: more words and environment, a command in front of it, and where its output lies."""

    words: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    out: str | None = None  # as the job names it; None: a folder of the cell
    seen: str | None = None  # as this process sees it, if that differs
    tools: dict = field(default_factory=dict)  # what the fault needs: a proxy, a server, a disk


class Job:
    """A job that runs. All its processes are children of its driver, but for those of nodes beside it."""

    def __init__(self, name: str, words: Sequence[str], folder: Path, around: Around) -> None:
        self.around, self.folder, self.log = around, folder, folder / "job.log"
        self.words = [*words, *around.words]
        self.out = around.out or str(folder / "run")
        self.store = open_store(around.seen or self.out)
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        # HOME: where a reference that was downloaded is kept
        env = {**os.environ, "INTROSPECT_RAY_SCRATCH": str(self.scratch), "HOME": str(folder), **around.env}
        command = [*around.prefix, sys.executable, f"jobs/{name}.py", *self.words, f"output_dir={self.out}"]
        self.said: list[tuple[float, str]] = []  # lines of stderr, and when they came
        self.began = time.monotonic()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=REPO, env=env, stdout=output, stderr=subprocess.PIPE, start_new_session=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._family: dict[int, psutil.Process] = {}

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.log.open("ab") as log:
            for line in self.process.stderr:
                self.said.append((time.monotonic(), line.decode(errors="replace").rstrip()))
                log.write(line)
                log.flush()

    # --- what is seen from outside --------------------------------------------------------------------------------

    def family(self) -> list[psutil.Process]:
        """The driver and what it started, as far as it is there; all of them are remembered."""
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            self._family |= {one.pid: one for one in (driver, *driver.children(recursive=True))}
        return [one for one in self._family.values() if one.is_running() and _state(one) != psutil.STATUS_ZOMBIE]

    def pids(self, part: str) -> list[int]:
        """Processes that are this part now, oldest first. On a cluster also those of its nodes (tools["nodes"])."""
        others = [child for node in self.around.tools.get("nodes", ()) for child in _below(node.pid)]
        found = []
        for one in (*self.family(), *others):
            with contextlib.suppress(psutil.NoSuchProcess):
                if TITLES[part] in " ".join(one.cmdline()):
                    found.append((one.create_time(), one.pid))
        return [pid for _, pid in sorted(found)]

    def steps(self, run: str = "") -> int:
        """Steps whose metrics are in the store."""
        name = f"{run}/metrics.jsonl" if run else "metrics.jsonl"
        with contextlib.suppress(FileNotFoundError):
            return self.store.read_bytes(name).count(b'"loss"')
        return 0

    def exists(self, name: str) -> bool:
        return self.store.exists(name)

    def writes(self, what: str) -> bool:
        """Whether a rank writes a checkpoint, or exports the policy: a folder on its way."""
        if list(self.scratch.glob(f"introspect-ray-{what}-*")):
            return True
        local = self.store.local_path("checkpoints")
        return what == "checkpoint" and local is not None and bool(list(local.glob(f"{TEMPORARY}rank-*")))

    @property
    def lines(self) -> list[str]:
        """Its stderr without empty lines and the progress bar's."""
        said = [part for _, line in self.said for part in line.split("\r")]
        return [line for line in said if line.strip() and not _BAR.search(line)]

    # --- what is done to it ---------------------------------------------------------------------------------------

    def wait_for(self, seen: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not seen():
            assert self.process.poll() is None, f"the job ended before {what}: {self.tail()}"
            assert time.monotonic() < until, f"{what} not seen in {PATIENCE_S:g} s: {self.tail()}"
            time.sleep(0.002 if self.store.local_path() is not None else 0.05)

    @contextlib.contextmanager
    def frozen(self, part: str | None) -> Iterator[None]:
        """Those that are this part stand still during the body, so that what they were doing is not over yet."""
        pids = self.pids(part) if part else []
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    def kill(self, part: str, which: int = 0) -> int:
        """SIGKILL the `which`-th process of a part; its pid."""
        self.wait_for(lambda: len(self.pids(part)) > which, f"a process of the {part}")
        pid = self.pids(part)[which]
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self) -> int:
        """Wait for its end; its exit code. It is killed if it does not end in PATIENCE_S: then it is a failed cell."""
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < until:
            self.family()  # to know all of them when it has gone
            time.sleep(_LOOK_S)
        if self.process.poll() is None:
            self.abandon()
            return -999
        self._reader.join(timeout=5)
        return self.process.returncode

    def left(self, patience_s: float = 15.0) -> list[str]:
        """Its processes that are there `patience_s` after its end; they are killed. Ray's own reaper takes a second."""
        alive = psutil.wait_procs([one for one in self._family.values() if one.pid != self.process.pid], patience_s)[1]
        names = []
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(one.name())
                one.kill()
        return names

    def abandon(self) -> None:
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(timeout=30)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def _below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _state(one: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return one.status()
    return psutil.STATUS_ZOMBIE


def _signal(pids: Sequence[int], sent: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)


def result(out: str, runs: Sequence[str]) -> dict[str, object]:
    """What must be the same bit for bit: by run, final weights, label table, evaluated cases, and all numbers of the
    summary but the seconds."""
    from introspect_ray.labels.store import read_labels
    from introspect_ray.scores.evaluation_table import TRAINED, read_parquet

    found: dict[str, object] = {}
    for run in runs:
        store = open_store(open_store(out).join(run) if run else out)
        summary = {key: value for key, value in store.read_json("summary.json").items() if key != "timing_s"}
        rows = store.read_bytes("metrics.jsonl").decode().splitlines()
        found[run] = {
            "weights": store.read_bytes("policy/model.safetensors"),
            "labels": list(read_labels(store.join("labels"))),
            "cases": read_parquet(store.read_bytes(TRAINED)),
            "summary": summary,
            "rows": len({row.partition(",")[0] for row in rows if '"loss"' in row}),
        }
    return found


def differences(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """The parts of `found` that are not as expected, by name."""
    pairs = [(run, part) for run, parts in expected.items() for part in parts]  # type: ignore[attr-defined]
    return [f"{run} {part}".strip() for run, part in pairs if found[run][part] != expected[run][part]]  # type: ignore[index]
