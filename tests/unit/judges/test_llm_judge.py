"""LLMJudge: what it sends, and how it reads what comes back."""

from __future__ import annotations

import pytest

from introspect_ray.judges import LLMJudge, Reply, Verdict

USER = {"role": "user", "content": "Say {response} or {0}"}


class Scripted:
    """Answers from a list; keeps what was sent."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.chats, self.calls = list(answers), [], 0

    def __call__(self, chats, max_tokens):
        assert 0 < max_tokens <= 32
        self.chats += chats
        self.calls += 1
        return [self.answers.pop(0) for _ in chats]


def test_the_reply_is_data_in_the_chat():
    """Braces in a reply mean nothing, and no filled-in text is filled in again."""
    model = Scripted("Refuse.", "comply")
    judge = LLMJudge(model, instruction="Q: {prompt}\nA: {response} {x}\nrefuse or comply?")
    system = {"role": "system", "content": "Be kind."}
    verdicts = judge.verdicts([Reply("a", (USER,), "no {prompt} \\1"), Reply("b", (system, USER), "yes")])
    assert verdicts == [Verdict("refuse", "Refuse."), Verdict("comply", "comply")]
    assert [chat[0]["content"] for chat in model.chats] == [
        "Q: Say {response} or {0}\nA: no {prompt} \\1 {x}\nrefuse or comply?",
        "Q: system: Be kind.\n\nuser: Say {response} or {0}\nA: yes {x}\nrefuse or comply?",
    ]
    assert all(len(chat) == 1 and chat[0]["role"] == "user" for chat in model.chats)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("refuse", "refuse"),
        (" **Comply**\n", "comply"),
        ("My answer: COMPLY, as it helps. Comply!", "comply"),
        ("refuse or comply", None),  # both
        ("It refused.", None),  # no whole word of either
        ("", None),
    ],
)
def test_a_verdict_is_the_one_label_said(said, label):
    assert LLMJudge(Scripted()).verdict(said) == Verdict(label, said)


def test_the_longer_of_two_labels_counts():
    judge = LLMJudge(Scripted(), labels=("urgent", "Not urgent", "moderately urgent"))
    assert [judge.verdict(said).label for said in ("not  urgent", "Urgent!", "moderately urgent")] == [
        "Not urgent",
        "urgent",
        "moderately urgent",
    ]


def test_a_response_without_text_is_not_sent():
    model = Scripted("comply")
    replies = [Reply("a", (USER,), " \n"), Reply("b", (USER,), "yes")]
    assert LLMJudge(model).verdicts(replies) == [Verdict(None, ""), Verdict("comply", "comply")]
    assert LLMJudge(model).verdicts(replies[:1]) == [Verdict(None, "")]
    assert len(model.chats) == model.calls == 1


def test_identity_is_all_that_decides():
    def identity(**changed):
        return LLMJudge(Scripted(), **{"name": "m", "instruction": "refuse comply {response}", **changed}).identity

    assert identity().startswith("llm:m:")
    assert identity(name="n", decided_by="m").rpartition(":")[2] == identity().rpartition(":")[2]
    others = [{"decided_by": "hash"}, {"instruction": "{response}: refuse, comply"}, {"labels": ("comply", "refuse")}]
    assert len({identity(), *(identity(**other) for other in others)}) == 4


def test_a_model_that_answers_too_little_is_named():
    judge = LLMJudge(lambda chats, max_tokens: [], name="m")
    with pytest.raises(RuntimeError, match=r"judge llm:m:.* answered 0 of 1 chats"):
        judge.verdicts([Reply("a", (USER,), "yes")])
