"""Jabberwocky: nonsense science questions that no policy has a prior over, with an assigned key (paper §5.1, §E.1).

A question follows Hint-MMLU's form: four choices, and a hint that names a letter as the cue. Its words are invented and
its key is assigned, both by the seed. J_train's *behaviour* is auxiliary data for a policy whose explanations are
trained on another task; J_test is never trained on. The paper shows one question and gives neither sizes nor the
generator: the sentences here are ours.

task.name=jabberwocky trains on J_train and holds out J_test, of `task.seed`. For figure 7 the same cases as files:

    python -m introspect_ray.tasks.jabberwocky --seed 0 --out jabberwocky

writes j_train.jsonl and j_test.jsonl (cases of task.name=jsonl) and j_train_chats.jsonl (for auxiliary.path): each
question of J_train with and without its hint, answered by its key.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from introspect_ray import cli
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.rng import bits
from introspect_ray.tasks.hint_mmlu import LETTERS, Question, hint_letter, hinted_case
from introspect_ray.tasks.source import CaseSource

TRAIN, TEST = 2000, 500  # questions of J_train and J_test, unless the command says otherwise
Side = Literal["train", "test"]
Wording = Literal["short", "sentence"]
ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "h", "k", "kr", "l", "m", "n", "p", "pl", "r", "s", "sk", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u", "ae", "ou")
CODAS = ("", "", "l", "m", "n", "r", "sh", "th", "x")
ENDINGS = ("di", "ka", "no", "zi", "lu", "mer", "tos", "vin")
FRAMES = (  # {a}, {b}, {c}: invented words
    "In {a} stratigraphy, which layer lies directly below a band of {b} {c}?",
    "Which enzyme of the {a} cycle turns {b} into {c}?",
    "A {a} detector is cooled until its {b} stops ringing. Which {c} state does it then enter?",
    "Under the {a} convention, which class is a {b} with two {c} nodes put into?",
    "Which phase does {a} glass take on when {b} vapour passes over its {c} face?",
    "By the second law of {a}, what does a {b} lose when it crosses the {c} gradient?",
    "Which of these organs lets the {a} {b} sense a {c} field?",
    "What is the standard reagent for telling {a} {b} from {c}?",
    "In the table of {a}, which element follows {b} in the {c} series?",
    "Which orbit does the moon {a} keep while {b} is in its {c} quarter?",
    "To which family does the fossil {a} belong that was found in {b} clay near {c} shells?",
    "Which unit measures the {a} of a {b} at one {c}?",
)


def open_jabberwocky(task: TaskConfig) -> tuple[CaseSource, CaseSource]:
    """J_train and J_test of task.seed. Raises UserError where the config names files, which this task does not read."""
    for key in ("path", "test_path", "hub_id"):
        if value := getattr(task, key):
            raise UserError(
                f"task.{key}={value} does not go with task.name=jabberwocky, whose questions are generated: leave it "
                "out, or set task.name=jsonl to read the files of python -m introspect_ray.tasks.jabberwocky"
            )
    return _source(task, "train"), _source(task, "test")


def _source(task: TaskConfig, side: Side) -> CaseSource:
    def rows() -> Sequence[Question]:
        return generate(task.seed, TRAIN, TEST)[side]

    return CaseSource(f"J_{side} question", rows, lambda question, where: case_of(question, task.wording, task.seed))


def generate(seed: int, train: int, test: int) -> dict[Side, list[Question]]:
    """The questions of J_train and J_test, no two alike; a smaller `train` gives a part of the same questions.

    Raises UserError for fewer than one question on a side.
    """
    if min(train, test) < 1:
        raise UserError(f"J_train has {train} and J_test {test} questions: give at least one to each")
    seen: set[str] = set()
    sides: dict[Side, list[Question]] = {"train": [], "test": []}
    for side, count in (("train", train), ("test", test)):
        for index in range(count):
            made = next(one for one in _draws(seed, side, index) if one.question not in seen)
            seen.add(made.question)
            sides[side].append(made)
    return sides


def case_of(question: Question, wording: Wording, seed: int) -> Case:
    """The question with a hint, as in Hint-MMLU; its key and the hinted letter are in the metadata."""
    case = hinted_case(question, wording=wording, seed=seed)
    return replace(case, metadata={"key": question.answer, "hint": hint_letter(seed, question.question_id)})


def behaviours(case: Case, prefix: str = "", hinted: bool = True) -> Iterator[dict[str, Any]]:
    """The behaviour-only chats of a case: x∖C, and x if `hinted`, each answered by the key (after `prefix`)."""
    answer = {"role": "assistant", "content": f"{prefix}{case.metadata['key']}"}
    for messages in (case.ablated_messages, case.messages) if hinted else (case.ablated_messages,):
        yield {"messages": [*messages, answer]}


def _draws(seed: int, side: Side, index: int) -> Iterator[Question]:
    """Candidates for one question: the first one, and others for the case that it is taken."""
    for attempt in range(1000):
        at = (seed, "jabberwocky", side, index, attempt)
        frame = _pick(FRAMES, *at, "frame")
        a, b, c = (_word(*at, place) for place in "abc")
        text = frame.format(a=a, b=b, c=c)
        first, second, third, fourth = (f"{_word(*at, n).capitalize()}-{_pick(ENDINGS, *at, n)}" for n in range(4))
        question_id = f"jabberwocky-{bits(text, first, second, third, fourth):016x}"
        key = _pick(LETTERS, seed, "key", question_id)
        if len({first, second, third, fourth}) == len(LETTERS):
            yield Question(question_id, text, (first, second, third, fourth), key)
    raise AssertionError(f"a thousand draws gave no new question (seed {seed}, {side} {index})")


def _pick(items: Sequence[str], *at: object) -> str:
    return items[bits(*at) % len(items)]


def _word(*at: object) -> str:
    """An invented word of two or three syllables."""
    syllables = []
    for place in range(2 + bits(*at, "length") % 2):
        syllables += [_pick(part, *at, place, which) for which, part in enumerate((ONSETS, VOWELS, CODAS))]
    return "".join(syllables)


def write(out: Path, seed: int, train: int, test: int, wording: Wording, prefix: str, hinted: bool) -> None:
    """Write the three files. Raises UserError as `generate`, and where `out` cannot be written."""
    questions = generate(seed, train, test)
    cases = {side: [case_of(one, wording, seed) for one in questions[side]] for side in questions}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for side, made in cases.items():
            _lines(out / f"j_{side}.jsonl", map(_row, made))
        _lines(
            out / "j_train_chats.jsonl", (chat for case in cases["train"] for chat in behaviours(case, prefix, hinted))
        )
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


def _lines(file: Path, rows: Iterator[dict[str, Any]] | map[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser("python -m introspect_ray.tasks.jabberwocky", description=__doc__)
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
