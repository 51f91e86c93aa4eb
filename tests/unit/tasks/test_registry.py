"""Tasks by name: built in, or registered by an installed package."""

import sys
from pathlib import Path

import pytest

from introspect_ray.config import TaskConfig
from introspect_ray.errors import UserError
from introspect_ray.tasks import load_cases, open_task

PARITY = """
from introspect_ray.errors import UserError
from introspect_ray.records import Case
from introspect_ray.tasks import CaseSource

def to_case(row, where):
    x, ablated = ({"role": "user", "content": text} for text in (f"Is {row} odd? I think no.", f"Is {row} odd?"))
    return Case(f"n{row}", (x,), (ablated,), "Why?", ("yes", "no"))

def open_task(task):
    if task.path:
        raise UserError("task.name=parity counts by itself: leave task.path out")
    return CaseSource("number", lambda: range(40), to_case), None
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of one module that registers a task, as pip would: on sys.path, with a dist-info."""
    monkeypatch.syspath_prepend(tmp_path)

    def installed(package: str, code: str, entry_point: str) -> None:
        (tmp_path / f"{package.replace('-', '_')}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[introspect_ray.tasks]\n{entry_point}\n")

    return installed


def refusal(name: str) -> str:
    with pytest.raises(UserError) as error:
        open_task(TaskConfig(name=name))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_bundled_organism_loads():
    train, test = load_cases(TaskConfig(train_cases=50, test_cases=20))
    assert (len(train), len(test)) == (50, 20) and set(next(iter(train)).labels) == set("ABCD")


def test_a_task_of_an_installed_package(install):
    """Its numbers 0..39 are split as any task's rows are: a quarter is held out."""
    install("parity-cases", PARITY, "parity = parity_cases:open_task")
    train, test = load_cases(TaskConfig(name="parity"))
    assert (len(train), len(test)) == (30, 10)
    assert {case.case_id for side in (train, test) for case in side} == {f"n{i}" for i in range(40)}
    with pytest.raises(UserError, match=r"leave task\.path out"):
        load_cases(TaskConfig(name="parity", path="x"))


def test_an_unknown_name_lists_the_known_ones(install):
    install("parity-cases", PARITY, "parity = parity_cases:open_task")
    said = "unknown task 'hint_mlu' (task.name): did you mean 'hint_mmlu'? the tasks are"
    refused = refusal("hint_mlu")
    assert refused.startswith(
        f"{said} organism, hint_mmlu, aita, refusal, jabberwocky, jsonl, bbq,"
    ) and refused.endswith(", parity")
    assert "did you mean 'parity'?" in refusal("party") and "did you mean" not in refusal("zzz")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import no_such_module", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        ("raise RuntimeError('two\\nlines')", "cannot be imported (RuntimeError: two lines)"),
        ("", "cannot be imported (AttributeError: module 'broken_cases' has no attribute 'open_task')"),
        ("open_task = 3", "is not a function but int"),
    ],
)
def test_a_broken_package_is_named(install, monkeypatch, code, problem):
    """Only the task that is asked for is imported, so that a broken package stops no other task."""
    monkeypatch.delitem(sys.modules, "broken_cases", raising=False)
    install("broken-cases", code, "broken = broken_cases:open_task")
    assert refusal("broken") == (
        f"task.name=broken: broken_cases:open_task of the package broken-cases {problem}: "
        "repair or uninstall the package"
    )
    assert open_task(TaskConfig())[1] is not None


def test_a_name_that_two_packages_register_is_refused(install):
    install("parity-cases", PARITY, "parity = parity_cases:open_task")
    install("other-cases", PARITY, "parity = other_cases:open_task")
    assert "by several packages (other-cases, parity-cases): uninstall all but one" in refusal("parity")


def test_a_package_does_not_replace_a_built_in_task(install):
    install("parity-cases", PARITY, "organism = parity_cases:open_task")
    assert open_task(TaskConfig(name="organism"))[0].where.endswith("train.jsonl line")
