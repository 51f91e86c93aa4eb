"""The evaluated cases of a run: from what engines answer to a table in the run's folder, and from there to metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from introspect_ray.cases.explanations import parse
from introspect_ray.cases.table import CaseTable
from introspect_ray.cases.tokenize import decode_turn
from introspect_ray.config import RunConfig
from introspect_ray.labels.rules import mixing_draw
from introspect_ray.records import BehaviorPair, Explanation, TokenizedCase
from introspect_ray.rng import bits
from introspect_ray.scores.evaluated_cases import POLICY, SECOND, EvaluatedCases
from introspect_ray.scores.evaluation_table import from_table, to_parquet, to_table
from introspect_ray.scores.questions import splits
from introspect_ray.storage import Store


class Said(NamedTuple):
    """An explanation as it was read (eval.decode), and what it states; None: unparseable."""

    text: str
    parsed: Explanation | None


@dataclass(frozen=True)
class Behavior:
    """What one policy does on the held-out cases, in their order. texts: its responses; () where no case has any."""

    pairs: Sequence[BehaviorPair]
    texts: Sequence[tuple[str, str]] = ()


def behavior_of(pairs: Sequence[BehaviorPair], tokenizer: Any) -> Behavior:
    """tokenizer: that of the policy that answered. Where some cases are free text, those with closed labels have "" as
    their responses."""
    if all(pair.cued_logprobs for pair in pairs):
        return Behavior(pairs)
    sides = [(pair.cued_response, pair.ablated_response) for pair in pairs]
    return Behavior(pairs, [(decode_turn(x, tokenizer), decode_turn(ablated, tokenizer)) for x, ablated in sides])


def said(generated: Sequence[Sequence[int]], test: Iterable[TokenizedCase], tokenizer: Any) -> list[Said]:
    """Explanations from generated tokens, one per held-out case. tokenizer: that of the policy that wrote them."""
    texts = [decode_turn(ids, tokenizer) for ids in generated]
    return [Said(text, parse(text, case.labels, case.templates)) for text, case in zip(texts, test, strict=True)]


def evaluated_cases(
    cfg: RunConfig, test: CaseTable, behaviors: Mapping[str, Behavior], explanations: Sequence[Said]
) -> EvaluatedCases:
    """The held-out cases with their split. behaviors: by the names of scores/evaluated_cases.py; "m0" and "policy" at
    least. explanations: of "policy"."""
    about = [(case.case_id, case.group, case.metadata, case.labels) for case in test]
    ids, groups, metadata, labels = map(list, zip(*about, strict=True))
    questions = [question_of(case) for case in test]
    return EvaluatedCases(
        case_ids=ids,
        groups=groups,
        metadata=metadata,
        labels=labels,
        pairs={name: behavior.pairs for name, behavior in behaviors.items()},
        said=[one.text for one in explanations],
        parsed=[one.parsed for one in explanations],
        texts={name: behavior.texts for name, behavior in behaviors.items() if behavior.texts},
        questions=questions,
        splits=splits(questions, cfg.eval.dev_fraction, cfg.task.seed),
        decode=cfg.eval.decode,
    )


def question_of(case: TokenizedCase) -> str:
    """Equal for cases with the same x∖C: a digest (16 hex digits) of its tokens."""
    return f"{bits(case.ablated):016x}"


def trained_cases(
    cfg: RunConfig, untrained: EvaluatedCases, behavior: Behavior, explanations: Sequence[Said]
) -> EvaluatedCases:
    """The cases of the untrained evaluation with the trained policy in the place of M0's explanations and Self.

    In a mixed run the held-out cases get the mask that they would have in training.
    """
    mixed = cfg.supervision.rule == "mixed" and SECOND in untrained.pairs
    ratio = cfg.supervision.mixing_ratio
    texts = {name: texts for name, texts in untrained.texts.items() if name != POLICY}
    return replace(
        untrained,
        pairs={**untrained.pairs, POLICY: behavior.pairs},
        said=[one.text for one in explanations],
        parsed=[one.parsed for one in explanations],
        texts={**texts, POLICY: behavior.texts} if behavior.texts else texts,
        from_second=[mixing_draw(cfg.seed, one) < ratio for one in untrained.case_ids] if mixed else None,
        decode=cfg.eval.decode,
    )


def write_cases(store: Store, name: str, cases: EvaluatedCases) -> EvaluatedCases:
    """Write the table `name`; returns the cases that are read back from it, which all metrics are made from."""
    table = to_table(cases)
    store.write_bytes(name, to_parquet(table))
    return from_table(table)
