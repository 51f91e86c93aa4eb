"""task.balance: as many held-out cases of one value as of another (paper §B.4, where AITA's test set is balanced).

The paper balances over M0's verdict without the cue. That is known only once M0 has answered: a label set or an
evaluation's table says it (`answers_file`). Before that, a value which the data set itself gives stands in for it
(AITA: the community's verdict), and M0's own verdicts may then be lopsided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.tasks.rows import parquet_rows

ANSWERS = ("m0.ablated", "ablated")  # y(x∖C) of M0: in an evaluation's table, in a label set


def values_by(balance: str) -> Callable[[Case], str | None]:
    """How task.balance reads the value of a case: None where M0's answer is not in the file.

    Raises UserError for a file without the columns; the function raises it for a case without the metadata.
    """
    path = Path(balance)
    if path.suffix == ".parquet" or path.is_dir():
        return _answers(path)

    def value(case: Case) -> str | None:
        if case.metadata.get(balance) is None:
            known = ", ".join(case.metadata) or "nothing"
            raise UserError(
                f"task.balance={balance}, but the metadata of case {case.case_id!r} has no {balance!r} (has {known}):"
                " set task.balance to one of its keys, to a .parquet file of M0's answers, or to null"
            )
        return str(case.metadata[balance])

    return value


def _answers(path: Path) -> Callable[[Case], str | None]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"task.balance={path}: the folder has no .parquet file; give a label set")
    found: dict[str, str] = {}
    for file in files:
        for row in parquet_rows(file, ("case_id",), ANSWERS):
            answer = next((row[column] for column in ANSWERS if row.get(column) is not None), None)
            if answer is None:
                raise UserError(f"task.balance={file}: no column {' or '.join(ANSWERS)}; give a label set of M0")
            found[str(row["case_id"])] = str(answer)
    return lambda case: found.get(case.case_id)


def balanced(
    values: Sequence[str | None], order: NDArray[np.uint64], limit: int | None, balance: str
) -> tuple[NDArray[np.bool_], str]:
    """Which cases [n] are kept, and one line on what is left out ("" for nothing).

    values, order: [n] of each case; the smallest of `order` stay, as many of each value as of the rarest one, or
    limit / (number of values). A case of value None goes. Raises UserError for fewer than two values, and for a `limit`
    that cannot be shared evenly or asks for more than there is.
    """
    counts = Counter(value for value in values if value is not None)
    if values and not counts:
        raise UserError(
            f"task.balance={balance} has an answer to none of the {len(values)} held-out cases: let M0 answer "
            "the cases of this task, with the same task.seed, task.test_fraction and task.max_tokens"
        )
    if len(counts) < 2:
        raise UserError(
            f"task.balance={balance}: the held-out cases have {len(counts)} values ({', '.join(counts) or 'none'}), "
            "two are needed: hold out more cases, or set task.balance=null"
        )
    each = min(counts.values())
    if limit is not None:
        if limit % len(counts):
            raise UserError(
                f"task.test_cases={limit} cannot be balanced over {len(counts)} values of task.balance={balance}: make "
                f"it a multiple of {len(counts)}"
            )
        if limit // len(counts) > each:
            raise UserError(
                f"task.test_cases={limit}, but task.balance={balance} leaves {each * len(counts)} held-out cases, "
                f"{each} of each value: lower it, or hold out more"
            )
    share = each if limit is None else limit // len(counts)
    kept = np.zeros(len(values), bool)
    for value in counts:
        own = np.array([index for index, one in enumerate(values) if one == value])
        kept[own[np.argsort(order[own], kind="stable")[:share]]] = True
    unknown = sum(value is None for value in values)
    surplus = sum(counts.values()) - each * len(counts)
    had = ", ".join(f"{value} {count}" for value, count in sorted(counts.items()))
    left_out = [f"{surplus} of the more frequent values ({had})"] if surplus else []
    left_out += [f"{unknown} without an answer there"] if unknown else []
    line = f"task.balance={balance}: of {len(values)} held-out cases left out {' and '.join(left_out)}"
    return kept, line if left_out else ""
