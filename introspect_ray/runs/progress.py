"""One progress bar with the numbers that matter, fed by step metrics."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

POLL_S = 1.0
_QUIET_S = 15.0  # between lines where the output is no terminal


@contextmanager
def progress_bar(steps: int, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar over one run's steps; the body gets the function that takes each row of StepMetrics."""
    with _bar(steps, name) as bar:

        def on_row(row: dict[str, Any]) -> None:
            bar.set_postfix_str(describe(row), refresh=False)
            bar.update(row["step"] + 1 - bar.n)

        yield on_row


@contextmanager
def board_bar(status: Any, steps: int, name: str) -> Iterator[None]:
    """A bar over all trials of a sweep, read from the status board while the body runs."""
    import ray

    stop = threading.Event()

    def follow() -> None:
        with _bar(steps, name) as bar:
            while not stop.wait(POLL_S):
                latest = ray.get(status.latest.remote())
                bar.update(sum(row["step"] + 1 for row in latest.values()) - bar.n)
                if latest:
                    run, row = list(latest.items())[-1]
                    bar.set_postfix_str(f"{run} {describe(row)}", refresh=False)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _bar(steps: int, name: str) -> tqdm:
    every = 1.0 if sys.stderr.isatty() else _QUIET_S
    return tqdm(total=steps, desc=name, unit="step", mininterval=every, maxinterval=2 * every, dynamic_ncols=True)


def describe(row: dict[str, Any]) -> str:
    """Loss and the batch's Self, Orig, Behaviour EM. Example: "loss 0.52 self .61 orig .55 beh .80"."""
    agreement = row["realised_at_labelling"]
    shown = f" ν {agreement:.2f}" if agreement is not None else ""
    return (
        f"loss {row['loss']:.3f} self {row['explanation_self']:.2f} orig {row['explanation_orig']:.2f} "
        f"beh {row['behavior_em']:.2f}{shown}"
    )
