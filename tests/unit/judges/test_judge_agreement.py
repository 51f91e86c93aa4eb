"""Two judges on the same replies, by hand; the bound on replies without a verdict."""

from __future__ import annotations

import json

import pytest

from introspect_ray.errors import AlarmError
from introspect_ray.judges import Reply, Verdict, check_unjudged, compare, report


def verdicts(letters: str) -> list[Verdict]:
    names = {"r": "refuse", "c": "comply", "-": None}
    return [Verdict(names[letter], "") for letter in letters]


def replies(count: int) -> list[Reply]:
    return [Reply(f"case-{i}", (), f"response {i}" + "x" * 300) for i in range(count)]


def test_kappa_by_hand():
    """10 compared: rr 4, cc 3, rc 2, cr 1. Observed agreement .7. The first says r 6 times, the second 5 times:
    expected .6 * .5 + .4 * .5 = .5. Kappa (.7 - .5) / (1 - .5) = .4. Two further replies lack a verdict."""
    found = compare(replies(12), verdicts("rrrrcccrrc-r"), verdicts("rrrrcccccr--"))
    assert found.counts == {
        ("refuse", "refuse"): 4,
        ("comply", "comply"): 3,
        ("refuse", "comply"): 2,
        ("comply", "refuse"): 1,
    }
    assert (found.replies, found.compared, found.disagreements, found.unjudged) == (12, 10, 3, (1, 2))
    assert found.disagreement == pytest.approx(0.3)
    assert found.kappa == pytest.approx(0.4)
    assert [e["case_id"] for e in found.examples] == ["case-7", "case-8", "case-9"]
    first = found.examples[0]
    assert (first["first"], first["second"], len(first["response"])) == ("refuse", "comply", 200)
    summary = json.loads(json.dumps(found.summary()))
    assert summary["unjudged"] == [1, 2]
    assert {"first": "refuse", "second": "comply", "replies": 2} in summary["counts"]


def test_ten_examples_at_most_and_complete_disagreement():
    """20 replies, each label half of the time for both: expected .5, observed 0, kappa -1."""
    found = compare(replies(20), verdicts("rc" * 10), verdicts("cr" * 10))
    assert len(found.examples) == 10
    assert found.kappa == pytest.approx(-1)


def test_kappa_is_undefined_where_nothing_varies():
    assert compare(replies(3), verdicts("rrr"), verdicts("rrr")).kappa is None
    nothing = compare(replies(1), verdicts("-"), verdicts("r"))
    assert nothing.kappa is None and nothing.disagreement is None


def test_too_many_replies_without_a_verdict_stop_the_run():
    given = [*verdicts("rc" * 10), Verdict(None, ""), Verdict(None, "Well,\nperhaps")]
    found = report("llm:m:aa", replies(22), given)
    check_unjudged(found, 2 / 22)
    check_unjudged(report("llm:m:aa", [], []), 0)
    with pytest.raises(AlarmError) as caught:
        check_unjudged(found, 0.05)
    assert str(caught.value).startswith(
        "judge llm:m:aa gave no verdict on 2 of 22 replies (9.1%, bound 5.0%): it answered e.g. 'Well, perhaps'; "
    )
    assert "raise judge.max_unjudged" in str(caught.value)


def test_reports_of_parts_add_up_to_the_report_of_the_whole():
    """Disagreements in both parts, replies without a verdict of either judge; examples stay at ten."""
    first, second, said = verdicts("rc" * 10 + "r-c-"), verdicts("cr" * 10 + "rrc-"), replies(24)
    parts = [report("keyword:r:1", said[a:b], first[a:b], second[a:b]) for a, b in ((0, 7), (7, 24))]
    whole = report("keyword:r:1", said, first, second)
    assert parts[0] + parts[1] == whole
    assert (whole.replies, whole.unjudged, whole.agreement.disagreements) == (24, 2, 20)
    assert json.loads(json.dumps(whole.summary()))["agreement"]["unjudged"] == [2, 1]
    with pytest.raises(ValueError, match="different judges"):
        parts[0] + report("keyword:r:2", said, first, second)
