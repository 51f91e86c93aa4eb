"""Which wording wins, and templates that cannot be used."""

from dataclasses import replace

import pytest

from introspect_ray.cases.wording import configured
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import OWN_WORDING, PAPER_WORDING, Case, Templates

CASE = Case("q", ({"role": "user", "content": "x"},), ({"role": "user", "content": "y"},), "Why?", ("NTA", "YTA"))
UNSAID = Templates()
SAID = Templates("Now {label}.", "Still {label}.", (("YTA", "you"), ("NTA", "they")))


def wording(templates=UNSAID, **task):
    return configured(replace(CASE, templates=templates), TaskConfig(**task), "f line 1").templates


def test_the_task_names_the_default():
    assert wording() == OWN_WORDING
    assert wording(explanation="paper") == PAPER_WORDING


def test_the_case_goes_before_the_default_and_the_config_before_the_case():
    """Each part by itself: one sentence, the other, and the display text of each label."""
    assert wording(SAID, explanation="paper") == replace(SAID, names=(("NTA", "they"), ("YTA", "you")))
    assert wording(Templates(unchanged="Still {label}."), explanation="paper").changed == PAPER_WORDING.changed
    mixed = wording(SAID, changed="Then {label}.", label_names={"YTA": "you!", "other": "?"})
    assert mixed == Templates("Then {label}.", "Still {label}.", (("NTA", "they"), ("YTA", "you!")))


def test_the_meta_question_of_the_config_wins():
    assert configured(CASE, TaskConfig(), "f line 1").meta_question == "Why?"
    assert configured(CASE, TaskConfig(meta_question="How?"), "f line 1").meta_question == "How?"


@pytest.mark.parametrize(
    ("templates", "says"),
    [
        (Templates(changed="Now it differs."), "template changed 'Now it differs.' has 0 times {label}"),
        (Templates(unchanged="{label}, still {label}"), "template unchanged '{label}, still {label}' has 2 times"),
        (Templates(names=(("NTA", "YTA"),)), "labels 'NTA' and 'YTA' alike"),
        (Templates(names=(("NTA", " "),)), "display text of label 'NTA' is blank"),
        (Templates("It is {label}.", "it  is {label} ."), "changed to 'NTA' and unchanged from 'NTA' alike"),
        (Templates("It is {label}.", "It is not {label}.", (("YTA", "not NTA"),)), "changed to 'YTA' and unchanged"),
    ],
)
def test_unusable_templates(templates, says):
    with pytest.raises(UserError) as error:
        wording(templates)
    assert str(error.value).startswith("f line 1: ") and says in str(error.value)
