"""Table 2: what explanation training does to general capabilities, by lm-evaluation-harness on exported policies.

The harness is an optional dependency (the extra `harness`) and does all the scoring. `score_policies` runs a list of
tasks on M0 and on trained policies and compares them item by item. The bundled task "organism" needs no network:
uncued questions of the model organism, with M0's own answer as the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from introspect_ray.cases.tokenize import render_chat
from introspect_ray.errors import UserError
from introspect_ray.policy import load_tokenizer, local_policy
from introspect_ray.records import BehaviorPair, Case

EXTRA = "pip install -e '.[harness]' in a checkout"
# Table 2 of the paper, with the few-shot setting where it names one.
PAPER_TASKS = ("arc_challenge", "hellaswag", "winogrande", "mmlu", "truthfulqa_mc2", "gsm8k")


class Score(NamedTuple):
    """One metric of one task. value, error: of the policy. difference: to M0, of the same items; None for M0 itself."""

    policy: str
    task: str
    metric: str  # with the harness's filter where it is not "none", e.g. "exact_match,strict-match"
    value: float
    error: float | None  # standard error; None where the harness gives none
    difference: float | None
    low: float | None  # 95 % interval of the difference: paired over items, normal approximation
    high: float | None
    items: int


def check_harness() -> None:
    """Raise UserError if lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UserError(f"table 2 needs lm-evaluation-harness, which cannot be imported ({error}): {EXTRA}") from None


def multiple_choice_task(name: str, cases: Iterable[Case], m0: Iterable[BehaviorPair], policy: str, out: Path) -> Any:
    """A task of the harness from cases with closed labels: the prompt is x∖C, the key what M0 answers to it.

    policy: whose chat template writes the prompts. out: a folder; the items are written to `out`/`name`.jsonl. Returns
    the task's config, for `score_policies`. A question that occurs in several cases is asked once.
    """
    tokenizer = load_tokenizer(local_policy(policy))
    items = {}
    for case, pair in zip(cases, m0, strict=True):
        question = render_chat(tokenizer, case.ablated_messages, add_generation_prompt=True)
        items[question] = {
            "question": question,
            "choices": list(case.labels),
            "answer": case.labels.index(pair.ablated),
        }
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name}.jsonl"
    file.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items.values()), encoding="utf-8")
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def score_policies(
    policies: Mapping[str, str],
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    chat: bool = False,
) -> list[Score]:
    """All metrics of all tasks for every policy, M0 first. policies: folder, bundled name or hub id, by name.

    tasks: names that the harness knows (PAPER_TASKS; they are downloaded) or configs (multiple_choice_task). limit:
    most items per task. num_fewshot: None: each task's own. chat: whether the harness applies the chat template. Raises
    UserError if the harness is missing or does not know a task.
    """
    check_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    scores: list[Score] = []
    first: Mapping[str, Any] | None = None
    for name, policy in policies.items():
        path = local_policy(policy)
        model = HFLM(pretrained=path, tokenizer=path, device=device, batch_size=batch_size, dtype="auto")
        try:
            found = simple_evaluate(
                model,
                tasks=list(tasks),
                limit=limit,
                num_fewshot=num_fewshot,
                task_manager=manager,
                apply_chat_template=chat,
                bootstrap_iters=1000,
                log_samples=True,
            )
        except (KeyError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"lm-evaluation-harness cannot run {list(tasks)}: {reason}") from error
        scores += compared(name, found, first)
        first = first or found
    return scores


def compared(policy: str, found: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[Score]:
    """The scores in the harness's results `found`, compared with those in `base` (of M0; None: this is M0).

    The difference has an interval where the harness gives one number per item in both (not for groups such as mmlu,
    whose items are those of its tasks).
    """
    scores = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            if "," not in key or "_stderr" in key or not isinstance(value, int | float):
                continue
            metric, kind = key.split(",", 1)
            error = metrics.get(f"{metric}_stderr,{kind}")
            items = per_item(found, task, metric, kind)
            difference = None if base is None else value - base["results"][task][key]
            low = high = None
            if base is not None and items:
                low, high = paired_interval(items, per_item(base, task, metric, kind))
            shown = metric if kind == "none" else key
            error = float(error) if isinstance(error, int | float) else None
            scores.append(Score(policy, task, shown, float(value), error, difference, low, high, len(items)))
    return scores


def per_item(found: Mapping[str, Any], task: str, metric: str, kind: str) -> dict[int, float]:
    """The metric of each item by the harness's doc_id; {} where it has none."""
    samples = found.get("samples", {}).get(task, ())
    return {
        sample["doc_id"]: float(sample[metric])
        for sample in samples
        if sample.get("filter", "none") == kind and isinstance(sample.get(metric), int | float)
    }


def paired_interval(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of mean(ours - theirs) over items: normal, with the standard error of the paired differences.

    (None, None) if the items are not the same, or fewer than two.
    """
    if ours.keys() != theirs.keys() or len(ours) < 2:
        return None, None
    differences = [ours[item] - theirs[item] for item in ours]
    mean = sum(differences) / len(differences)
    variance = sum((one - mean) ** 2 for one in differences) / (len(differences) - 1)
    half = 1.96 * math.sqrt(variance / len(differences))
    return mean - half, mean + half
