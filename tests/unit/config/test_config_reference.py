"""The keys as text: --help SECTION and docs/config.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from introspect_ray.config import field_names
from introspect_ray.config.reference import Key, help_text, markdown, sections
from introspect_ray.errors import UserError

KEYS = {key.name: key for section in sections() for key in section.keys}


def test_every_key_has_a_meaning():
    assert set(KEYS) == set(field_names())
    assert [key.name for key in KEYS.values() if not key.meaning] == []
    assert [section.name for section in sections() if not section.meaning] == []


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("kl_weight", "number ≥ 0, ≤ 1e+06", "1.0"),
        ("train.use_gpu", "true | false", "false"),
        ("supervision.rule", "fixed | online | mixed", "fixed"),
        ("rollout.max_model_len", "integer ≥ 16 | null", "null"),
        ("task.test_fraction", "number > 0, < 1", "0.25"),
        ("task.answer_prefix", "text", '""'),
        ("eval.against", "list of texts", "[]"),
    ],
)
def test_types_and_defaults(name, kind, default):
    assert KEYS[name][:3] == Key(name, kind, default, "")[:3]


def test_help_on_a_section_on_a_key_and_on_neither():
    text = help_text("supervision")
    assert "supervision.agreement=1.0  (number ≥ 0, ≤ 1)\n    online: ν" in text and "rollout." not in text
    assert help_text("run").count("\nkl_weight=") == 1
    assert help_text("lag") == "lag=0  (integer ≥ 0)\n    Step t trains on labels of weight version t - lag exactly."
    with pytest.raises(UserError, match="did you mean 'supervision'"):
        help_text("suprevision")
    with pytest.raises(UserError, match="the sections are run, task, supervision"):
        help_text("zzz")


def test_the_page_in_docs_is_up_to_date():
    """After a change of the keys: make docs."""
    assert (Path(__file__).parents[3] / "docs" / "config.md").read_text() == markdown()
