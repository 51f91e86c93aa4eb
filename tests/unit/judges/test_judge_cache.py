"""CachedJudge on a local folder and on S3."""

from __future__ import annotations

import pytest

from introspect_ray.errors import UserError
from introspect_ray.judges import CachedJudge, Reply, Verdict
from introspect_ray.storage import open_store

USER = {"role": "user", "content": "Q"}


def reply(response: str, case_id: str = "c", question: str = "Q") -> Reply:
    return Reply(case_id, ({"role": "user", "content": question},), response)


class Counting:
    """The response is the verdict; "?" gives none. Keeps the size of every call."""

    labels = ("refuse", "comply")

    def __init__(self, identity: str = "llm:m:00000000000000aa", fail_after: int | None = None) -> None:
        self.identity, self.fail_after, self.calls = identity, fail_after, []

    def verdicts(self, replies):
        if len(self.calls) == self.fail_after:
            raise UserError("server gone")
        self.calls.append(len(replies))
        return [Verdict(None if r.response == "?" else "comply", f"said ‘{r.response}’") for r in replies]


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    return str(tmp_path / "cache") if request.param == "local" else request.getfixturevalue("s3_env")


def test_a_second_run_asks_nothing(uri):
    replies = [reply("yes"), reply("?"), reply("yes", case_id="d"), reply("yes", question="Q2")]
    first, second = Counting(), Counting()
    verdicts = CachedJudge(first, open_store(uri)).verdicts(replies)
    assert verdicts == [
        Verdict("comply", "said ‘yes’"),
        Verdict(None, "said ‘?’"),
        Verdict("comply", "said ‘yes’"),
        Verdict("comply", "said ‘yes’"),
    ]
    assert first.calls == [3]  # two cases have the same chat and response
    cached = CachedJudge(second, open_store(uri))
    assert (cached.identity, cached.labels) == (first.identity, first.labels)
    assert cached.verdicts(replies) == verdicts and second.calls == []
    assert cached.verdicts([reply("new"), reply("yes")])[1] == verdicts[0] and second.calls == [1]


def test_another_judge_has_verdicts_of_its_own(tmp_path):
    store, other = open_store(tmp_path), Counting("llm:m:00000000000000bb")
    CachedJudge(Counting(), store).verdicts([reply("yes")])
    CachedJudge(other, store).verdicts([reply("yes")])
    assert other.calls == [1]
    assert {name.split("/")[1] for name in store.list("judges")} == {"00000000000000aa", "00000000000000bb"}


def test_what_was_judged_before_a_failure_is_kept(tmp_path):
    """Chunks of two: the third fails, four of five replies stay."""
    replies = [reply(str(i)) for i in range(5)]
    with pytest.raises(UserError, match="server gone"):
        CachedJudge(Counting(fail_after=2), open_store(tmp_path), chunk=2).verdicts(replies)
    again = Counting()
    CachedJudge(again, open_store(tmp_path), chunk=2).verdicts(replies)
    assert again.calls == [1]


def test_writers_side_by_side(tmp_path):
    """Neither sees the other's verdicts, both files stay, the same content is one file."""
    store = open_store(tmp_path)
    writers = [CachedJudge(Counting(), store) for _ in range(3)]
    for writer, words in zip(writers, (["a", "b"], ["b", "c"], ["a", "b"]), strict=True):
        writer.verdicts([])  # reads the folder while it is empty
        writer.verdicts([reply(word) for word in words])
    assert len(store.list("judges")) == 2
    reader = Counting()
    CachedJudge(reader, store).verdicts([reply(word) for word in "abc"])
    assert reader.calls == []


def test_a_damaged_file_is_deleted_and_its_replies_are_judged_again(tmp_path, caplog):
    store = open_store(tmp_path)
    CachedJudge(Counting(), store).verdicts([reply("yes")])
    (name,) = store.list("judges")
    whole = store.read_bytes(name)
    for at in (5, len(whole) // 2):  # the key of the reply, the verdict: both stay valid JSON
        store.write_bytes(name, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        again = Counting()
        assert CachedJudge(again, store).verdicts([reply("yes")]) == [Verdict("comply", "said ‘yes’")]
        assert again.calls == [1] and f"{name} is damaged: it is deleted" in caplog.text
        assert store.read_bytes(name) == whole
