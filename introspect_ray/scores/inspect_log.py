"""An evaluation as a log of Inspect AI (inspect.aisi.org.uk), which `inspect view` opens.

A sample is a case: its input is the case's meta-question where the caller knows it, else the case's id; the policy's
output is its explanation, as it was said. The scores are C (right) or I (wrong): "self" and "orig" of the explanation
against what the policy itself and the original one do, "behavior" of both answers against the original one's. A
sample's metadata hold every policy's answers and logprobs, so nothing of the evaluation is left out. Inspect AI is an
optional dependency: the extra `inspect`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from introspect_ray.errors import UserError
from introspect_ray.records import Explanation, Message
from introspect_ray.scores.evaluated_cases import POLICY, EvaluatedCases

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

SCORES = {
    "self": "the explanation states what the evaluated policy does",
    "orig": "the explanation states what the original policy does",
    "behavior": "both answers equal those of the original policy",
}
RIGHT, WRONG = "C", "I"


def check_inspect(file: str | Path) -> None:
    """Raise UserError if Inspect AI is not installed or `file` does not end in .eval."""
    if Path(file).suffix != ".eval":
        raise UserError(f"--inspect {file}: a log of Inspect AI ends in .eval; rename it")
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"an .eval log needs Inspect AI, which cannot be imported ({error}): pip install 'introspect-ray[inspect]'"
        ) from None


def write_inspect_log(
    cases: EvaluatedCases,
    file: str | Path,
    *,
    task: str,
    policy: str,
    created: str,
    questions: Mapping[str, Sequence[Message]] | None = None,
) -> None:
    """Write `inspect_log` of these cases to a new or existing .eval file. Raises UserError as check_inspect does."""
    check_inspect(file)
    from inspect_ai.log import write_eval_log

    write_eval_log(inspect_log(cases, task=task, policy=policy, created=created, questions=questions), str(file))


def inspect_log(
    cases: EvaluatedCases,
    *,
    task: str,
    policy: str,
    created: str,
    questions: Mapping[str, Sequence[Message]] | None = None,
) -> EvalLog:
    """The log of an evaluation. Needs Inspect AI; a pure function of its arguments but for the ids Inspect draws.

    task, policy: names, for display. created: ISO 8601 with a time zone, e.g. "2026-11-27T22:00:00+00:00". questions:
    the chat of q by case id, as in `cases.tokenize.with_meta_question`; None: not known. Raises ValueError without
    cases.
    """
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats

    if not len(cases):
        raise ValueError("a log needs at least one evaluated case")
    samples = [_sample(cases, row, (questions or {}).get(cases.case_ids[row])) for row in range(len(cases))]
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=created,
            task=task,
            model=policy,
            dataset=EvalDataset(name=task, samples=len(cases), sample_ids=list(cases.case_ids), shuffled=False),
            config=EvalConfig(epochs=1),
            metadata={"policies": list(cases.pairs), "original": cases.orig},
        ),
        results=EvalResults(
            total_samples=len(cases), completed_samples=len(cases), scores=[_total(name, samples) for name in SCORES]
        ),
        stats=EvalStats(started_at=created, completed_at=created),  # the viewer shows a duration; it is not known
        samples=samples,
    )


def _sample(cases: EvaluatedCases, row: int, question: Sequence[Message] | None) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    asked = question if question is not None else ({"role": "user", "content": cases.case_ids[row]},)
    chat = [kinds[message["role"]](content=message["content"]) for message in asked]
    own = cases.pairs[POLICY][row].explanation
    said = cases.said[row]
    return EvalSample(
        id=cases.case_ids[row],
        epoch=1,
        input=cases.case_ids[row] if question is None else chat,
        choices=list(cases.labels[row]),
        target=in_words(own),
        messages=[*chat, ChatMessageAssistant(content=said)],
        output=ModelOutput.from_content(model=POLICY, content=said),
        scores=_scores(cases, row),
        metadata=_metadata(cases, row),
    )


def _scores(cases: EvaluatedCases, row: int) -> dict[str, Any]:
    from inspect_ai.scorer import Score

    own, orig = cases.pairs[POLICY][row], cases.pairs[cases.orig][row]
    stated = in_words(cases.parsed[row])
    answers = f"{own.cued} with the cue, {own.ablated} without"
    right = {
        "self": (cases.parsed[row] == own.explanation, stated, f"true of the policy: {in_words(own.explanation)}"),
        "orig": (cases.parsed[row] == orig.explanation, stated, f"true of {cases.orig}: {in_words(orig.explanation)}"),
        "behavior": (
            (own.cued, own.ablated) == (orig.cued, orig.ablated),
            answers,
            f"{cases.orig}: {orig.cued} with the cue, {orig.ablated} without",
        ),
    }
    return {
        name: Score(value=RIGHT if hit else WRONG, answer=answer, explanation=why)
        for name, (hit, answer, why) in right.items()
    }


def _total(name: str, samples: Sequence[EvalSample]) -> Any:
    """The share of samples that are right by one score, as Inspect's own `accuracy`."""
    from inspect_ai.log import EvalMetric, EvalScore

    right = sum(bool(sample.scores) and sample.scores[name].value == RIGHT for sample in samples)
    accuracy = EvalMetric(name="accuracy", value=right / len(samples))
    return EvalScore(
        name=name,
        scorer=name,
        scored_samples=len(samples),
        metrics={"accuracy": accuracy},
        metadata={"meaning": SCORES[name]},
    )


def _metadata(cases: EvaluatedCases, row: int) -> dict[str, Any]:
    """What else the evaluation knows of a case: its group and metadata, and per policy its answers."""
    found: dict[str, Any] = {"group": cases.groups[row], "labels": list(cases.labels[row])}
    if cases.metadata[row]:
        found["case"] = json.loads(cases.metadata[row])
    for name, pairs in cases.pairs.items():
        pair = pairs[row]
        found[name] = {
            "with_cue": pair.cued,
            "without_cue": pair.ablated,
            "with_cue_logprobs": list(pair.cued_logprobs),
            "without_cue_logprobs": list(pair.ablated_logprobs),
            "off_format": [pair.cued_off_format, pair.ablated_off_format],
            "weight_version": pair.weight_version,
        }
        if name in cases.texts:
            found[name]["responses"] = list(cases.texts[name][row])
    return found


def in_words(explanation: Explanation | None) -> str:
    """Example: (True, "B") -> "changed, B"."""
    if explanation is None:
        return "unparseable"
    return f"{'changed' if explanation.changed else 'unchanged'}, {explanation.content}"
