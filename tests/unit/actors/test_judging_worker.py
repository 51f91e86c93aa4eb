"""A rollout actor as a plain object, without Ray: free responses of the organism become judged pairs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from learner_helpers import organism_cases

from introspect_ray.actors.rollout import EngineSpec, Request, RolloutWorker, Serving
from introspect_ray.cases.table import CaseTable, cases_of
from introspect_ray.config import RolloutConfig, TaskConfig
from introspect_ray.config.judges import JudgeConfig
from introspect_ray.judges import Judging, KeywordJudge, Reply, Verdict, make_judging
from introspect_ray.judges.keyword import WordLists
from introspect_ray.policy import local_policy
from introspect_ray.tasks import load_cases

LENGTH = 3
LETTERS = WordLists(labels=("early", "late"), prefixes=("A", "B"))
CLOSED = organism_cases(12)
MIXED = [
    replace(case, labels=("early", "late"), label_tokens=(), max_response=LENGTH) if i % 3 else case
    for i, case in enumerate(CLOSED)
]
FREE = [case for case in MIXED if case.max_response]


class Seen:
    """A judge that keeps what it was asked, and has no verdict on D."""

    def __init__(self) -> None:
        self.inner, self.replies = KeywordJudge(LETTERS, "letters"), []
        self.identity, self.labels = self.inner.identity, self.inner.labels

    def verdicts(self, replies: Sequence[Reply]) -> list[Verdict]:
        self.replies += replies
        given = self.inner.verdicts(replies)
        return [Verdict(None, "?") if r.response == "D" else v for r, v in zip(replies, given, strict=True)]


def start(judging: Judging | None = None, chats: bool = False) -> RolloutWorker:
    spec = EngineSpec("organism", 128, "full", 1, 0, judging, chats)
    return RolloutWorker(RolloutConfig(engine="transformers"), spec)


@pytest.fixture(scope="module")
def greedy() -> dict[tuple[int, ...], str]:
    """The organism's greedy text after each prompt, by transformers' own generate, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = local_policy("organism")
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    texts = {}
    for prompt in {prompt for case in CLOSED for prompt in (case.prompt, case.ablated)}:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False)
        texts[prompt] = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
    return texts


def test_free_responses_are_judged_and_closed_labels_stay_as_they_are(tmp_path: Path, greedy):
    judge = Seen()
    worker = start(Judging(judge, None, "late", 0.5, str(tmp_path)))
    pairs, judged = worker._label(MIXED)
    assert [pair.case_id for pair in pairs] == [case.case_id for case in MIXED]
    assert pairs[0] == worker._label(CLOSED)[0][0] and pairs[0].cued_response == ()
    unjudged = 0
    for case, pair in zip(MIXED, pairs, strict=True):
        if not case.max_response:
            continue
        assert pair.cued_logprobs == pair.ablated_logprobs == () and pair.weight_version == 0
        for side, prompt in (("cued", case.prompt), ("ablated", case.ablated)):
            text = greedy[prompt]
            assert getattr(pair, side) == ("early" if text in ("A", "B") else "late")  # C judged, D has no verdict
            assert getattr(pair, f"{side}_off_format") == (text == "D")
            assert len(getattr(pair, f"{side}_response")) == 1 < LENGTH  # a letter; the end of turn is left out
            unjudged += text == "D"
    assert unjudged and (judged.identity, judged.replies, judged.agreement) == (judge.identity, 2 * len(FREE), None)
    shown = worker._tokenizer.decode(list(FREE[0].prompt), skip_special_tokens=True)
    assert judge.replies[0].messages == ({"role": "user", "content": shown},) and "<" not in shown
    assert {reply.response for reply in judge.replies} == {greedy[p] for c in FREE for p in (c.prompt, c.ablated)}


def test_verdicts_in_the_cache_are_not_asked_again(tmp_path: Path):
    first, second = Seen(), Seen()
    pairs, judged = start(Judging(first, None, "late", 0.5, str(tmp_path)))._label(MIXED)
    again = start(Judging(second, None, "late", 0.5, str(tmp_path)))._label(MIXED)
    assert first.replies and not second.replies and again == (pairs, judged)


def test_a_second_judge_is_compared_and_the_first_one_counts(tmp_path: Path):
    """The second judge calls A alone early: the two disagree exactly on B. Verdicts of rules are not kept."""
    only_a = KeywordJudge(WordLists(labels=("early", "late"), prefixes=("A",)), "a")
    worker = start(Judging(KeywordJudge(LETTERS, "letters"), only_a, "late", 0.5, str(tmp_path)))
    pairs, judged = worker._label(FREE)
    said = [worker._tokenizer.decode(list(r)) for pair in pairs for r in (pair.cued_response, pair.ablated_response)]
    assert judged.agreement.counts[("early", "late")] == said.count("B") > 0
    assert judged.agreement.disagreements == said.count("B")
    assert [label for pair in pairs for label in (pair.cued, pair.ablated)] == [
        "early" if text in ("A", "B") else "late" for text in said
    ]
    assert list(tmp_path.iterdir()) == []


def test_free_text_without_a_judge_is_refused():
    with pytest.raises(ValueError, match="answered in free text, but these engines have no judge"):
        start()._label(FREE[:1])


def test_a_judging_policy_answers_chats_through_its_own_template(greedy):
    """The organism as judge: its answer to a chat is its greedy text after the chat's tokens."""
    cases = list(islice(load_cases(TaskConfig())[0], len(CLOSED)))
    assert [case.case_id for case in cases] == [case.case_id for case in CLOSED]
    request = Request("chat", (), Serving(), 0, LENGTH, [case.messages for case in cases])
    assert start(chats=True).answer(request, []).answers == [greedy[case.prompt] for case in CLOSED]


def test_a_batch_is_found_over_several_tables():
    """Ids of both tables in turn, one of them twice."""
    tables = [CaseTable.build(CLOSED[:5]), CaseTable.build(CLOSED[5:])]
    order = [CLOSED[i] for i in (7, 0, 6, 1, 7)]
    taken: list[int] = []
    for table in tables:
        inner = table.take
        table.take = lambda ids, inner=inner: taken.append(len(ids)) or inner(ids)
    assert cases_of(tables, [case.case_id for case in order]) == order
    assert taken == [2, 3]
    with pytest.raises(KeyError):
        cases_of(tables, ["nobody"])


def test_a_judging_goes_to_other_processes(tmp_path: Path):
    """Files of the config are read where it is made: a copy works without them."""
    words = tmp_path / "letters.yaml"
    words.write_text("labels: [early, late]\nprefixes: [A, B]\n")
    judging = make_judging(JudgeConfig(words=str(words)), str(tmp_path))
    words.unlink()
    copy = pickle.loads(pickle.dumps(judging))
    assert (copy.key, copy.unjudged) == (judging.key, "late")
    assert copy.judge.verdicts([Reply("c", (), "B")]) == [Verdict("early", "")]
