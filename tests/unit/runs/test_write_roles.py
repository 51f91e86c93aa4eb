"""Roles written by a chat model: what is asked, and what is taken from the answers."""

import pytest

from introspect_ray.errors import UserError
from introspect_ray.runs.write_roles import FIELDS, new_roles, requests, role_in
from introspect_ray.tasks.refusal import ROLES, read_roles


@pytest.mark.parametrize(
    "answer,role",
    [
        ("This user is a vet who treats horses.", "This user is a vet who treats horses."),
        ('Sure!\n\n1. "This user is a vet."\nThis user is a cook.', "This user is a vet."),
        ("- **This user is a vet.**", "This user is a vet."),
        ("This user is a vet who treats", None),  # cut off
        ("You are a vet.", None),
        ("", None),
    ],
)
def test_the_role_is_the_first_line_that_reads_as_one(answer, role):
    assert role_in(answer) == role


def test_repeated_and_bundled_roles_do_not_count():
    bundled = read_roles(ROLES)["refuse"][0]
    answers = ["This user is a vet.", bundled, "This user is a vet.", "No.", "This user is a cook."]
    assert new_roles(answers, "refuse") == ("This user is a vet.", "This user is a cook.")
    with pytest.raises(UserError, match="none of 2 answers is a role"):
        new_roles([bundled, "No."], "refuse")


def test_no_two_requests_are_alike():
    """Greedy answers to equal requests are equal; beyond the list of fields the examples differ."""
    count = 2 * len(FIELDS)
    texts = {chat[0]["content"] for way in ("refuse", "comply") for chat in requests(way, count, seed=0)}
    assert len(texts) == 2 * count
