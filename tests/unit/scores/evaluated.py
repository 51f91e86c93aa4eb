"""Evaluated cases for tests."""

from __future__ import annotations

import random

from introspect_ray.records import BehaviorPair, Explanation
from introspect_ray.scores.evaluated_cases import EvaluatedCases


def pairs(text: str) -> list[BehaviorPair]:
    """ "AB CC" -> pairs y(x) = A, y(x∖C) = B and C, C of cases 0 and 1."""
    return [
        BehaviorPair(str(i), a, b, (0.0,) * 4, (0.0,) * 4, False, False, 0) for i, (a, b) in enumerate(text.split())
    ]


def cases(policy: str, m0: str, parsed: list[Explanation | None], groups: str = "", **further) -> EvaluatedCases:
    """groups: a letter per case. further: pairs of further policies as text, or fields of EvaluatedCases."""
    others = {name: pairs(further.pop(name)) for name in list(further) if isinstance(further[name], str)}
    n = len(parsed)
    fields = {
        "case_ids": [str(i) for i in range(n)],
        "groups": list(groups) or [""] * n,
        "metadata": [""] * n,
        "labels": [("A", "B", "C", "D")] * n,
        "pairs": {"m0": pairs(m0), "policy": pairs(policy), **others},
        "said": ["" if e is None else str(e) for e in parsed],
        "parsed": parsed,
    }
    return EvaluatedCases(**fields | further)


def random_cases(seed: int, n: int = 40) -> EvaluatedCases:
    """Every second seed a mixed run, every third in groups, every fifth free text, every fourth with a dev split; two
    further policies. Thirty questions, ten of them with two cases."""
    rng = random.Random(seed)
    ids = [f"case-{seed}-{i}" for i in range(n)]
    labels = [tuple(rng.sample(["NTA", "YTA", "naïve", "möglich"], rng.randint(2, 4))) for _ in ids]
    free = seed % 5 == 0

    def behaviour(version: int) -> list[BehaviorPair]:
        rows = []
        for case_id, allowed in zip(ids, labels, strict=True):
            logprobs = [() if free else tuple(-10 * rng.random() for _ in allowed) for _ in range(2)]
            answers, off = rng.choices(allowed, k=2), rng.choices([False, True], k=2)
            rows.append(BehaviorPair(case_id, *answers, *logprobs, *off, version))
        return rows

    policies = ["m0", "policy", "against:Qwen/Qwen2.5-0.5B", "against:policy"] + ["second"] * (seed % 2)
    policies += ["reference"] * (seed % 4 == 2)
    return EvaluatedCases(
        case_ids=ids,
        groups=[rng.choice(["", "hint", "metadata.content"]) if seed % 3 == 0 else "" for _ in ids],
        metadata=[rng.choice(["", '{"subject": "möglich"}']) for _ in ids],
        labels=labels,
        pairs={name: behaviour(version) for version, name in enumerate(policies)},
        said=[rng.choice(["The response would change to NTA.", "", "\n?"]) for _ in ids],
        parsed=[rng.choice([None, Explanation(rng.random() < 0.5, rng.choice(allowed))]) for allowed in labels],
        texts={name: [(f"x {case_id}", "") for case_id in ids] for name in policies} if free else {},
        from_second=[rng.random() < 0.5 for _ in ids] if seed % 2 else None,
        questions=[f"q{i % 30}" for i in range(n)],
        splits=["dev" if seed % 4 == 3 and i % 30 < 6 else "test" for i in range(n)],
    )
