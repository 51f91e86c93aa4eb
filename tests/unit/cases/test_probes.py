"""What the probes of a run's deliveries look at: all tokens within the promised rounds, at a bounded cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learner_helpers import make_cases, with_words

from introspect_ray.cases.probes import CASE_TOKENS, ITEM_TOKENS, LAST_FACTOR, ProbePlan, Rounds, case_item, prompts_of
from introspect_ray.cases.table import CaseTable

CASES = [with_words(case) for case in make_cases(30, stem=(20, 40))]
TOKENS, VOCABULARY = 64, 300


@pytest.fixture(scope="module")
def table() -> CaseTable:
    return CaseTable.build(CASES)


@pytest.fixture(scope="module")
def plan(table) -> ProbePlan:
    return ProbePlan(CASES, table.used_tokens(VOCABULARY), TOKENS, seed=3)


def test_every_token_is_looked_at_within_the_rounds(plan, table):
    """From any delivery on, a token is in a prompt and asked for. By hand, with 4 items of 16 tokens per delivery, one
    of them of the tokens that no case uses."""
    used = set(np.flatnonzero(table.used_tokens(VOCABULARY)).tolist())
    texts = [s for c in CASES for s in (c.prompt, c.ablated, c.question, *c.label_tokens, *c.explanations.values())]
    assert used == {token for text in texts for token in text} and len(used) == 53  # 4 items
    assert plan.rounds == Rounds(2, 16)  # three items a delivery; the 247 others make 16 items, one a delivery
    for tokens, rounds in ((used, plan.rounds.used), (set(range(VOCABULARY)) - used, plan.rounds.others)):
        for first in (0, 5):
            items = [item for number in range(first, first + rounds) for item in plan.at(number)[1:]]
            assert tokens <= {token for item in items for token in item.asked}
            assert tokens <= {token for item in items for token in item.first + item.second}


@pytest.mark.parametrize(("items", "used", "others"), [(1, 100, 40), (2, 100, 40), (3, 17, 300), (5, 500, 1)])
def test_the_rounds_hold_for_any_number_of_items(items, used, others):
    marks = np.arange(used + others) < used
    plan = ProbePlan(CASES, marks, items * ITEM_TOKENS, seed=1)
    for tokens, rounds in ((np.flatnonzero(marks), plan.rounds.used), (np.flatnonzero(~marks), plan.rounds.others)):
        for first in range(9):
            asked = {t for number in range(first, first + rounds) for item in plan.at(number)[1:] for t in item.asked}
            assert set(tokens.tolist()) <= asked


def test_a_delivery_costs_its_tokens_and_those_of_a_case_window(plan):
    for number in range(20):
        prompts, asked = prompts_of(plan.at(number))
        assert sum(map(len, prompts)) == 1.5 * TOKENS + 2 * CASE_TOKENS
        assert max(map(len, asked)) <= ITEM_TOKENS  # far below what vLLM answers at one place


def test_probes_follow_from_seed_and_number_and_rotate_over_cases_and_places(plan, table):
    again = ProbePlan(CASES, table.used_tokens(VOCABULARY), TOKENS, seed=3)
    assert [again.at(n) for n in (7, 0, 3)] == [plan.at(n) for n in (7, 0, 3)]
    other = ProbePlan(CASES, table.used_tokens(VOCABULARY), TOKENS, seed=4)
    assert other.at(0)[0] != plan.at(0)[0] and other.at(0)[1:] != plan.at(0)[1:]
    windows = [plan.at(number)[0].first for number in range(40)]
    assert len(set(windows)) > 30
    for window in windows:
        assert any(case.prompt[i : i + CASE_TOKENS] == window for case in CASES for i in range(len(case.prompt)))


def test_the_last_delivery_looks_at_all_tokens_of_a_small_vocabulary(plan):
    items = plan.last(9)[1:]
    assert {token for item in items for token in item.asked} == set(range(VOCABULARY))
    assert len(items) == plan.rounds.others * TOKENS // ITEM_TOKENS


def test_the_last_delivery_is_bounded():
    plan = ProbePlan(CASES, np.arange(100_000) < 40_000, 32, seed=0)
    assert sum(map(len, prompts_of(plan.last(3))[0])) <= LAST_FACTOR * (1.5 * 32) + 2 * CASE_TOKENS


def test_where_cases_use_all_tokens_all_of_a_delivery_goes_to_them():
    plan = ProbePlan(CASES, np.ones(100, np.bool_), TOKENS, seed=0)
    assert plan.rounds == Rounds(2, 0)  # 7 items, 4 a delivery
    assert len(plan.at(1)) == 1 + TOKENS // ITEM_TOKENS


def test_short_prompts_and_few_tokens_are_enough():
    """Prompts of one token, and five tokens of the vocabulary: each is asked for once per place."""
    short = [replace(CASES[0], prompt=(1,), ablated=(4,))]
    item, *others = ProbePlan(short, np.ones(5, np.bool_), 32, seed=0).at(3)
    assert (item.first, item.second) == ((1,), (4,)) and case_item(short[0]) == item
    assert all(sorted(other.asked) == [0, 1, 2, 3, 4] for other in others)
    with pytest.raises(ValueError, match="got 1 and 15"):
        ProbePlan(short, np.ones(5, np.bool_), 15, seed=0)
