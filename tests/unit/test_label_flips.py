"""The benchmark label_flips: engines are given what the pool would give them, and a flip is counted and located."""

from __future__ import annotations

import pytest
from learner_helpers import make_cases

from benchmarks.label_flips import ALONE, BATCH, Way, groups, summary, ways


@pytest.mark.parametrize("kind", ["vllm", "learner"])
def test_all_engines_together_answer_every_case_once(kind):
    cases = make_cases(2 * BATCH)
    for way in ways(4):
        parts = [part for mine in range(way.engines) for part in groups(cases, way, mine, kind)]
        assert sorted(case.case_id for part in parts for case in part) == sorted(case.case_id for case in cases)
        assert not way.size or max(map(len, parts)) <= way.size


def test_groups_are_those_of_the_pool_and_shards_those_of_the_workers():
    """A batch of 8 on 4 engines: groups of 2 if dealt evenly; groups of 3 go to engines 0, 1, 2, and of the next batch
    to 3, 0, 1."""
    cases = make_cases(2 * BATCH)

    def ids(way: Way, mine: int, kind: str = "vllm") -> list[list[int]]:
        return [[int(c.case_id.removeprefix("case-")) for c in part] for part in groups(cases, way, mine, kind)]

    assert ids(Way(4, 0), 1) == [[2, 3], [10, 11]]
    assert ids(Way(4, 3), 0) == [[0, 1, 2], [11, 12, 13]] and ids(Way(4, 3), 3) == [[8, 9, 10]]
    assert ids(Way(2, 3), 1, "learner") == [[1, 3, 5], [7], [9, 11, 13], [15]]


def test_a_flip_is_counted_per_way_and_located_by_its_margin():
    """Two places, of which the second is a near tie; vLLM answers it otherwise in one of its two ways."""
    right = {"a x": ["A", -0.1, -3.0], "a x∖C": ["B", -0.75, -0.5]}
    other = {"a x": ["A", -0.1, -3.0], "a x∖C": ["A", -0.5, -0.75]}
    made = {"transformers": {ALONE: right}, "vllm": {ALONE: right, "2 engines, groups of 3": other}}
    found = summary(made, right)
    assert (found["answers"], found["across"], found["within"]) == (6, 1, 1)
    assert (found["places"], found["cases"], found["of_places"], found["nearer_than_it"]) == (1, 1, 2, 1)
    assert (found["widest_margin"], found["largest_gap"]) == (0.25, 0.25)
    assert found["by_kind"] == {"transformers": 0, "vllm": 1}
    assert [(flip.place, flip.instead_of, flip.label) for flip in found["flips"]] == [("a x∖C", "B", "A")]
