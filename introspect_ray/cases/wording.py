"""Which words a case's explanations and its meta-question have.

`task.changed`, `task.unchanged`, `task.meta_question` and `task.label_names` win where they are set; then what the case
says; then the wording that `task.explanation` names.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from introspect_ray.cases.explanations import LABEL, render, stated_alike
from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.records import OWN_WORDING, PAPER_WORDING, Case, Templates


def configured(case: Case, task: TaskConfig, where: str) -> Case:
    """The case with its wording complete: both sentences set, display texts of its own labels only.

    where: the place of the case, which messages begin with. Raises UserError for a sentence without exactly one
    {label}, and for templates that cannot tell two explanations apart.
    """
    default = PAPER_WORDING if task.explanation == "paper" else OWN_WORDING
    names = {**dict(case.templates.names), **task.label_names}
    templates = Templates(
        task.changed or case.templates.changed or default.changed,
        task.unchanged or case.templates.unchanged or default.unchanged,
        tuple((label, names[label]) for label in case.labels if label in names),
    )
    problem = wording_problem(case.labels, templates)
    if problem:
        raise UserError(f"{where}: {problem}")
    return replace(case, templates=templates, meta_question=task.meta_question or case.meta_question)


def complete(templates: Templates) -> Templates:
    """The templates of a case that no configuration was applied to: what is not set has our own wording."""
    return replace(
        templates,
        changed=templates.changed or OWN_WORDING.changed,
        unchanged=templates.unchanged or OWN_WORDING.unchanged,
    )


@lru_cache(maxsize=4096)
def wording_problem(labels: tuple[str, ...], templates: Templates) -> str | None:
    """What is wrong with complete templates for these labels, and the remedy; None if nothing is."""
    for name, sentence in (("changed", templates.changed), ("unchanged", templates.unchanged)):
        if sentence.count(LABEL) != 1:
            return f"the template {name} {sentence!r} has {sentence.count(LABEL)} times {LABEL}: write it exactly once"
    blank = next((label for label, text in templates.names if not text.strip()), None)
    if blank is not None:
        return f"the display text of label {blank!r} is blank: write one, or leave the label out"
    pair = stated_alike(labels, templates)
    if pair is None:
        return None
    one, other = pair
    what = (
        f"labels {one.content!r} and {other.content!r}"
        if one.changed == other.changed
        else f"changed to {other.content!r} and unchanged from {one.content!r}"
    )
    return f"the templates write {what} alike, as {render(one, templates)!r}: change the sentences or the display texts"
