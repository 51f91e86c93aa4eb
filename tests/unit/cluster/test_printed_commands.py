"""Every command that the documentation and the cluster files print is read by the program that it calls."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from introspect_ray import commands
from introspect_ray.cli import parse
from introspect_ray.config import load_config
from introspect_ray.errors import UserError
from introspect_ray.runs.search_space import chosen_spaces, load_grid

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "cluster").glob("*.md"))]
YAMLS = [*sorted((ROOT / "docs").glob("*.yaml")), *sorted((ROOT / "cluster").glob("*.yaml"))]
OURS = re.compile(r"(introspect-ray [a-z]|python jobs/\w+\.py|ray [a-z]|mlflow server )")
IMAGE = "/opt/introspect-ray/"  # the Dockerfile copies cluster/ there


def printed() -> Iterator[tuple[str, str]]:
    """(place, command): lines of code blocks, code in sentences, comments of YAML files, commands in YAML files."""
    for page in PAGES:
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.M | re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
        said = [code for code in inline if len(code.split()) > (3 if code.startswith("ray ") else 1)]  # not `ray up`
        yield from ((page.name, line) for line in [*lines, *said])
    for path in YAMLS:
        comments = "\n".join(re.findall(r"^ *# ?(.*)$", path.read_text(), re.M)).replace("\\\n", " ")
        yield from ((path.name, line) for line in comments.splitlines() if line.startswith(" "))
        for document in yaml.safe_load_all(path.read_text()):
            yield from ((path.name, text) for text in texts(document))


def texts(node: Any) -> Iterator[str]:
    """All texts in a YAML document, and a container's command and arguments as one."""
    if isinstance(node, dict):
        if "command" in node and "args" in node:
            yield shlex.join([*node["command"], *node["args"]])
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


def calls() -> list[tuple[str, str]]:
    """(place, command) of programs that we can ask; what follows ; && || or & is a command of its own."""
    found = []
    for place, line in printed():
        line = re.sub(r"\$\([^)]*\)", "OUTPUT", line)
        for part in re.split(r";|&&|\|\||(?<=\s)&(?=\s|$)", line):
            begins = OURS.search(part)
            if begins and (not part[: begins.start()].strip() or begins[0] == "mlflow server "):
                command = re.sub(r" > \S+$", "", part[begins.start() :].strip())
                if "--help" not in command and (place, command) not in found:
                    found.append((place, command))
    return found


def read(words: list[str]) -> None:
    """Parse a command as its program would, and check its config. Raises what the program reports, or SystemExit."""
    program, *rest = [word for word in words if word != "..."]
    if program == "python":
        assert (ROOT / rest[0]).is_file()
        name, _, swept = Path(rest[0]).stem.partition("_")
        check_ours(name, [*([swept] if swept else []), *rest[1:]])
    elif program == "introspect-ray":
        check_ours(rest[0], rest[1:])
    elif program == "mlflow":
        from mlflow.cli import cli as mlflow

        check_click(mlflow, rest)
    else:
        from ray.scripts.scripts import cli as ray

        check_click(ray, rest)
        if rest[:2] == ["job", "submit"]:
            read(rest[rest.index("--") + 1 :])


def check_ours(name: str, words: list[str]) -> None:
    command = commands.COMMANDS[name]
    args = parse("", words, command.flags, takes_names=command.takes_names)
    config = args.config and str(ROOT / args.config.removeprefix(IMAGE))
    if name == "sweep":
        load_grid(chosen_spaces(args.names, args.overrides), config, args.overrides, {})
    elif name in ("train", "evaluate", "label"):
        load_config(config, args.overrides)
    if settings := args.flags.get("settings"):
        assert (ROOT / settings).is_file()


def check_click(command: click.Command, words: list[str]) -> None:
    """Parse as click does before it calls anything."""
    parent = None
    while isinstance(command, click.Group):
        parent = command.make_context(command.name, list(words), parent=parent)
        _, command, words = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    command.make_context(command.name, list(words), parent=parent)


def test_commands_are_found_in_every_kind_of_place() -> None:
    found = Counter(place for place, _ in calls())
    assert found["README.md"] >= 25 and found["tasks.md"] >= 8 and found["smollm2_mmlu.yaml"] >= 2
    assert found["aws-h100.yaml"] == found["gcp-h100.yaml"] == 4  # ray stop, two kinds of ray start, mlflow server
    assert found["kuberay-sweep.yaml"] == found["kuberay-mlflow.yaml"] == 1


@pytest.mark.parametrize(("place", "command"), calls())
def test_a_printed_command_is_read_by_its_program(place: str, command: str) -> None:
    try:
        read(shlex.split(command, comments=True))
    except (UserError, click.ClickException) as error:
        pytest.fail(f"{place}: {command}\n{error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "introspect-ray train steps=1 kl_wieght=0", "introspect-ray sweep lamda", "python jobs/train.py steps=many",
        "ray job submit --adress http://127.0.0.1:8265 -- python jobs/train.py",
        "ray job submit -- python jobs/train.py steps=-1", "ray strat --head", "mlflow server --prot 5000",
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises((UserError, click.ClickException)):
        read(shlex.split(wrong))
