"""The organism's cases, as the GPU tests train on them."""

from __future__ import annotations

from itertools import islice

import pytest

from introspect_ray.cases.tokenize import tokenize_case
from introspect_ray.config import TaskConfig
from introspect_ray.policy import BUNDLED, load_tokenizer
from introspect_ray.records import TokenizedCase
from introspect_ray.tasks import load_cases


@pytest.fixture(scope="module")
def cases() -> list[TokenizedCase]:
    tokenizer = load_tokenizer(str(BUNDLED["organism"]))
    return [tokenize_case(case, tokenizer, "") for case in islice(load_cases(TaskConfig())[0], 48)]
