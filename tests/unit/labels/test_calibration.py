"""Calibration by hand, and how behaviours are read by it: offsets, pairs, provenance, the file beside the labels."""

from __future__ import annotations

import json

import pytest

from introspect_ray.config import RunConfig
from introspect_ray.errors import UserError
from introspect_ray.labels.calibration import Calibration, contextual, from_json
from introspect_ray.labels.pair_table import PairTable
from introspect_ray.labels.reading import RAW, Reading, load_reading
from introspect_ray.labels.rules import Sources, make_labels, mixed_label, mixing_draw
from introspect_ray.records import BehaviorPair
from introspect_ray.storage import open_store

AB = ("A", "B")


def pair(case_id: str, cued: tuple, ablated: tuple, labels: tuple = AB) -> BehaviorPair:
    """A raw pair: its answers are the argmax of the logprobs."""
    answers = (labels[side.index(max(side))] for side in (cued, ablated))
    return BehaviorPair(case_id, *answers, cued, ablated, False, False, 0)


# Mean logprobs of A and B: on x -1 and -3, on x∖C -2 and -1.
RAW_PAIRS = [pair("c0", (-0.5, -2.5), (-3.0, -0.5)), pair("c1", (-1.5, -3.5), (-1.0, -1.5))]
CALIBRATION = contextual((one, AB) for one in RAW_PAIRS)


def test_offsets_are_the_mean_logprobs_of_each_label_by_side():
    assert CALIBRATION.offsets == {AB: {"cued": (-1.0, -3.0), "ablated": (-2.0, -1.0)}}


def test_the_answer_is_the_largest_difference_to_the_mean():
    """x: A is .8 above its mean, B 1 above: B, though A is likelier. x∖C: A 1 below, B .5 below: B. Logprobs stay."""
    raw = pair("c2", (-0.2, -2.0), (-3.0, -1.5))
    assert (raw.cued, raw.ablated) == ("A", "B")
    read = CALIBRATION.pair(raw, AB)
    assert (read.cued, read.ablated) == ("B", "B")
    assert (read.cued_logprobs, read.ablated_logprobs) == (raw.cued_logprobs, raw.ablated_logprobs)
    assert CALIBRATION.pair(read, AB) == read  # read again it stays the same


def test_ties_go_to_the_first_label():
    """c0 on x: both are .5 above their means."""
    assert CALIBRATION.pair(RAW_PAIRS[0], AB).cued == "A"


def test_label_sets_have_offsets_of_their_own_and_free_text_has_none():
    free = BehaviorPair("f", "refuse", "comply", (), (), False, False, 0, (1,), (2,))
    other = pair("c3", (-1.0, -2.0), (-1.0, -2.0), ("NTA", "YTA"))
    both = contextual([(RAW_PAIRS[0], AB), (other, ("NTA", "YTA")), (free, ("refuse", "comply"))])
    assert both.offsets[AB]["cued"] == (-0.5, -2.5) and both.offsets["NTA", "YTA"]["cued"] == (-1.0, -2.0)
    assert len(both.offsets) == 2 and both.pair(free, ("refuse", "comply")) == free
    with pytest.raises(KeyError):
        CALIBRATION.pair(other, ("NTA", "YTA"))


def test_the_identity_is_that_of_the_offsets():
    again = contextual((one, AB) for one in RAW_PAIRS[::-1])  # the order of the cases is no matter
    moved = Calibration({AB: {"cued": (-1.0, -3.0), "ablated": (-2.0, -1.0000001)}})
    assert again.identity == CALIBRATION.identity != moved.identity and len(CALIBRATION.identity) == 16


def test_the_file_keeps_every_digit(tmp_path):
    store = open_store(tmp_path)
    assert load_reading(store) == RAW  # a run of version 0.1
    third = Calibration({AB: {"cued": (-1 / 3, -2 / 7), "ablated": (-0.1, -1e-17)}})
    assert from_json(json.loads(json.dumps(third.as_json))) == third
    for reading in (Reading(third, "keyword:refusal:3fa9"), Reading(third), RAW):
        reading.save(store)
        assert load_reading(store) == reading
    assert RAW.summary is None
    assert Reading(third).summary == {"kind": "contextual", "identity": third.identity}


def test_a_changed_offset_is_noticed(tmp_path):
    store = open_store(tmp_path)
    Reading(CALIBRATION).save(store)
    content = store.read_json("reading.json")
    content["calibration"]["offsets"][0]["cued"][0] = -1.5
    store.write_json("reading.json", content)
    with pytest.raises(UserError, match=r"reading\.json is damaged"):
        load_reading(store)


@pytest.mark.parametrize("rule", ["fixed", "online"])
def test_labels_name_how_their_parents_were_read(rule):
    """c2 is closed, so calibrated; f is free text, so judged."""
    closed = CALIBRATION.pair(pair("c2", (-0.2, -2.0), (-3.0, -1.5)), AB)
    free = BehaviorPair("f", "comply", "refuse", (), (), False, False, 0)
    pairs = {"c2": closed, "f": free}
    sources = Sources(
        {"c2": AB, "f": ("refuse", "comply")}, "m", pairs, reading=Reading(CALIBRATION, "keyword:refusal:3fa9")
    )
    cfg = RunConfig.model_validate({"supervision": {"rule": rule}})
    labels = make_labels(cfg, sources, 0, ["f", "c2"], [free, closed])
    assert [(label.provenance.judge, label.provenance.calibration) for label in labels] == [
        ("keyword:refusal:3fa9", ""),
        ("", CALIBRATION.identity),
    ]
    raw = make_labels(cfg, Sources(sources.labels, "m", pairs), 0, ["f", "c2"], [free, closed])
    assert {(label.provenance.judge, label.provenance.calibration) for label in raw} == {("", "")}
    assert [label.explanation for label in raw] == [label.explanation for label in labels]


def test_fixed_and_mixed_labels_explain_the_reference_policy():
    """Online labels explain the policy that is trained, whatever it is kept to."""
    m0 = {"c": pair("c", (0.0, -1.0), (0.0, -1.0))}
    sources = Sources({"c": AB}, "trained", m0, "other", m0, reference="kept-to")
    for rule, source in (
        ({"rule": "fixed"}, "kept-to"),
        ({"rule": "mixed", "mixing_ratio": 0.0, "second_policy": "other"}, "kept-to"),
        ({"rule": "online"}, "trained"),
    ):
        (label,) = make_labels(RunConfig.model_validate({"supervision": rule}), sources, 0, ["c"], [m0["c"]])
        assert label.provenance.source_model == source


def test_the_mask_of_the_mixture_is_that_of_the_labels():
    for case_id in map(str, range(50)):
        both = pair(case_id, (0.0, -1.0), (0.0, -1.0))
        label = mixed_label(both, both, mixing_ratio=0.4, seed=7, sources=("m0", "second"), step=3)
        assert (mixing_draw(7, case_id) < 0.4) == (label.provenance.source_model == "second")


def test_a_label_set_is_read_row_by_row():
    """Some rows are read otherwise; the order of the rows and the logprobs stay."""
    raw = [*RAW_PAIRS, pair("c2", (-0.2, -2.0), (-3.0, -1.5))]
    table = PairTable.build(raw)
    labels = dict.fromkeys(("c2", "c1", "c0"), AB)
    assert list(table.read_by(Reading(CALIBRATION), labels)) == [CALIBRATION.pair(one, AB) for one in raw] != raw
    assert table.read_by(RAW, labels) is table
