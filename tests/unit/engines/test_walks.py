"""Explanations by a walk over the valid ones: what is asked, branch by branch, and which cases share a prefix cache."""

from __future__ import annotations

from dataclasses import replace

from introspect_ray.engines.walks import Asked, Cache, Walks, cache_parts
from introspect_ray.records import Explanation, TokenizedCase

END = 2
EXPLANATIONS = {
    **{Explanation(True, x): (20, 21, 22, i, 26, END) for x, i in (("A", 10), ("B", 11))},  # would change to X .
    **{Explanation(False, x): (20, 23, 21, 24, i, 26, END) for x, i in (("A", 10), ("B", 11))},  # would not change ...
}
CASE = TokenizedCase("c", ("A", "B"), ((10,), (11,)), (1, 7, 9), (1, 9), (1, 7, 9, 4), EXPLANATIONS)


def test_only_what_decides_is_asked():
    """The first branch is after 20 (change or not), the second after the head that was taken (A or B)."""
    walks = Walks([CASE, replace(CASE, question=(5,))])
    assert walks.asked() == [Asked((1, 7, 9, 4, 20), (21, 23)), Asked((5, 20), (21, 23))]
    walks.go([(-1.0, -2.0), (-3.0, -0.1)])
    heads = [Asked((1, 7, 9, 4, 20, 21, 22), (10, 11)), Asked((5, 20, 23, 21, 24), (10, 11))]
    assert walks.asked() == heads
    walks.go([(-0.7, -0.7), (-2.0, -0.5)])  # the first of equals
    assert walks.asked() == []
    assert walks.tokens() == [(20, 21, 22, 10, 26), (20, 23, 21, 24, 11, 26)]


def test_walks_of_different_lengths_end_on_their_own():
    """Unchanged is one sentence here, whatever the label: its walk ends at the first branch."""
    short = {Explanation(False, "A"): (20, 23, END), Explanation(True, "A"): (20, 21, 10, END)}
    more = {**short, Explanation(True, "B"): (20, 21, 11, END)}
    walks = Walks([replace(CASE, explanations=more), replace(CASE, explanations=more)])
    walks.go([(-0.1, -3.0), (-3.0, -0.1)])
    assert [asked.tokens for asked in walks.asked()] == [(10, 11)]
    walks.go([(-1.0, -0.1)])
    assert walks.tokens() == [(20, 23), (20, 21, 11)]


def test_cases_that_fit_into_the_cache_together_are_asked_together():
    """Blocks of 4: x of 3 tokens takes one, x∖C one, and q with an explanation of 7 three; two are for last blocks."""
    cases = [replace(CASE, case_id=str(i)) for i in range(5)]
    assert [len(part) for part in cache_parts(cases, Cache(14, 4))] == [2, 2, 1]
    assert [len(part) for part in cache_parts(cases, Cache(3, 4))] == [1] * 5
    assert list(cache_parts(cases, None)) == [cases]
    assert list(cache_parts([], Cache(14, 4))) == list(cache_parts([], None)) == []


def test_whole_blocks_that_x_begins_with_are_counted_once():
    """x of 8 tokens is two blocks of 4, with which q of 10 begins; x∖C shares one. So 2 + (2 - 1) + (5 - 2) + 2."""
    case = replace(CASE, prompt=tuple(range(30, 38)), ablated=(30, 31, 32, 33, 50, 51))
    case = replace(case, question=(*case.prompt, 4, 5))
    assert [len(part) for part in cache_parts([case, case], Cache(16, 4))] == [2]
    assert [len(part) for part in cache_parts([case, case], Cache(15, 4))] == [1, 1]
