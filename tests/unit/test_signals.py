"""SIGINT and SIGTERM: one line, the exit codes of shells, and an end in time. Each command is a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BEGIN = """
import signal, subprocess, sys, threading, time
from introspect_ray import cli, signals
from introspect_ray.errors import Halted

def ready():
    print("ready", flush=True)
"""
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def command(body: str, *sent: int, gap: float = 0.5) -> tuple[int, list[str], float]:
    """(exit code, lines on stderr, seconds from the first signal) of a command with a body, which calls ready()."""
    lines = [*BEGIN.splitlines(), "def job():", *(f"    {line}" for line in body.strip().splitlines())]
    lines += ["cli.run(job, 'go on with --resume')"]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n", process.communicate()
    began = time.monotonic()
    for number, one in enumerate(sent):
        time.sleep(gap if number else 0)
        process.send_signal(one)
    _, said = process.communicate(timeout=60)
    return process.returncode, [line for line in said.splitlines() if line], time.monotonic() - began


@pytest.mark.parametrize(("sent", "code"), CODES)
def test_a_command_is_interrupted_and_cleans_up(sent: signal.Signals, code: int) -> None:
    body = "try:\n    ready(); time.sleep(60)\nfinally:\n    print('cleaned up', file=sys.stderr)"
    assert command(body, sent)[:2] == (code, ["cleaned up", f"stopped: {sent.name}; go on with --resume"])


@pytest.mark.parametrize(("sent", "code"), CODES)
def test_what_trains_is_asked_and_ends_by_itself(sent: signal.Signals, code: int) -> None:
    body = """
over = threading.Event()
with signals.gently(over.set):
    ready(); over.wait(60)
    raise Halted("the checkpoint of step 7 is stored")
"""
    done, said, _ = command(body, sent)
    assert done == code and said[0].startswith(f"stopping: {sent.name}: a checkpoint comes first, for at most 20 s")
    assert said[1:] == [f"stopped: {sent.name}: the checkpoint of step 7 is stored; go on with --resume"]


def test_nothing_starts_after_a_body_that_came_to_its_end() -> None:
    body = """
over = threading.Event()
with signals.gently(over.set):
    ready(); over.wait(60)
print("went on", file=sys.stderr)
"""
    code, said, _ = command(body, signal.SIGTERM)
    assert code == 143 and said[1:] == ["stopped: SIGTERM: what was under way has come to its end; go on with --resume"]


@pytest.mark.parametrize("sent", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["in time", "second signal"])
def test_what_does_not_end_by_itself_is_interrupted(sent: list[int]) -> None:
    """Of a limit of 3 s the body has 2; the second signal comes after half a second."""
    code, said, seconds = command("signals.again(3)\nwith signals.gently(print):\n    ready(); time.sleep(60)", *sent)
    assert code == 128 + sent[0] and said[1:] == [f"stopped: {signal.Signals(sent[0]).name}; go on with --resume"]
    assert (2 <= seconds < 3) if len(sent) == 1 else (seconds < 2)


def test_a_library_that_takes_the_signals_loses_them_again() -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); signals.again(); ready(); time.sleep(60)"
    assert command(body, signal.SIGTERM)[0] == 143


def test_an_end_that_hangs_is_cut_off_with_all_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"""
signals.again(2)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.DEVNULL)
open({str(pid)!r}, "w").write(str(child.pid))
try:
    ready(); time.sleep(60)
finally:
    time.sleep(60)
"""
    code, said, seconds = command(body, signal.SIGTERM, signal.SIGTERM)
    assert code == 143 and said == [
        "stopped: SIGTERM: what had not ended after 2 s, or at the third signal, was killed"
    ]
    assert seconds < 4 and not psutil.pid_exists(int(pid.read_text()))


def test_an_error_on_the_way_out_is_no_traceback() -> None:
    body = "try:\n    ready(); time.sleep(60)\nfinally:\n    raise RuntimeError('two\\nlines')"
    code, said, _ = command(body, signal.SIGINT)
    assert code == 130
    assert said == ["stopped: SIGINT: while it ended, RuntimeError: two lines; go on with --resume"]


def test_signals_are_given_back_to_a_process_that_runs_a_command() -> None:
    from introspect_ray import cli, signals

    before = [signal.getsignal(one) for one in signals.SIGNALS]
    cli.run(lambda: None)
    assert [signal.getsignal(one) for one in signals.SIGNALS] == before
    assert signals.asked() is None


def test_a_thread_that_gives_up_ends_the_command_and_what_it_started() -> None:
    body = """
child = subprocess.Popen(["sleep", "60"])
print(child.pid, file=sys.stderr, flush=True)
threading.Timer(0.2, signals.give_up, ["nothing can go on"]).start()
ready(); time.sleep(60)
"""
    code, (child, last), seconds = command(body)
    assert (code, last) == (1, "stopped: nothing can go on") and seconds < 5
    assert not psutil.pid_exists(int(child))
