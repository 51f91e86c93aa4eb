"""J_train and J_test of Jabberwocky as files, and J_train's behaviour as auxiliary data (paper §5.1, figure 7).

    python -m introspect_ray.tasks.write_jabberwocky --seed 0 --out jabberwocky

writes j_train.jsonl and j_test.jsonl (cases of task.name=jsonl) and j_train_chats.jsonl (for auxiliary.path): each
question of J_train with and without its hint, answered by its key.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from introspect_ray import cli
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.tasks.jabberwocky import TEST, TRAIN, Wording, case_of, generate


def behaviours(case: Case, prefix: str = "", hinted: bool = True) -> Iterator[dict[str, Any]]:
    """The behaviour-only chats of a case: x∖C, and x if `hinted`, each answered by the key (after `prefix`)."""
    answer = {"role": "assistant", "content": f"{prefix}{case.metadata['key']}"}
    for messages in (case.ablated_messages, case.messages) if hinted else (case.ablated_messages,):
        yield {"messages": [*messages, answer]}


def write(out: Path, seed: int, train: int, test: int, wording: Wording, prefix: str, hinted: bool) -> None:
    """Write the three files. Raises UserError as `generate`, and where a file is there or `out` cannot be written."""
    questions = generate(seed, train, test)
    cases = {side: [case_of(one, wording, seed) for one in questions[side]] for side in questions}
    files: dict[str, Iterable[dict[str, Any]]] = {f"j_{side}.jsonl": map(_row, made) for side, made in cases.items()}
    files["j_train_chats.jsonl"] = (chat for case in cases["train"] for chat in behaviours(case, prefix, hinted))
    for name in files:
        cli.check_new(out / name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            _lines(out / name, rows)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}): name another folder") from None
    print(f"{out}: {train} questions of J_train (behaviour: j_train_chats.jsonl), {test} of J_test")


def _row(case: Case) -> dict[str, Any]:
    """The case as a line of task.name=jsonl."""
    return {
        "id": case.case_id,
        "messages": list(case.messages),
        "ablated_messages": list(case.ablated_messages),
        "meta_question": case.meta_question,
        "labels": list(case.labels),
        "metadata": dict(case.metadata),
    }


def _lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser("python -m introspect_ray.tasks.write_jabberwocky", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the questions, keys and hints, as task.seed (default 0)"
    )
    parser.add_argument("--train", type=int, default=TRAIN, help=f"questions of J_train (default {TRAIN})")
    parser.add_argument("--test", type=int, default=TEST, help=f"questions of J_test (default {TEST})")
    parser.add_argument(
        "--wording", choices=("short", "sentence"), default="short", help="of the hint, as task.wording"
    )
    parser.add_argument(
        "--answer-prefix", default="", help="text before the letter in the chats, as task.answer_prefix"
    )
    parser.add_argument("--no-hinted", action="store_true", help="chats without the hint only")
    args = parser.parse_args()
    cli.run(
        lambda: write(args.out, args.seed, args.train, args.test, args.wording, args.answer_prefix, not args.no_hinted)
    )


if __name__ == "__main__":
    main()
