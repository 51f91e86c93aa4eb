"""The structure of introspect_ray: rooms, imports between them, lines, and the files one online step goes through.

    python -m benchmarks.structure [--repo DIR]     of any checkout: rooms, imports and lines, from its files alone
    PYTHONPATH=DIR python benchmarks/structure.py   of the checkout that Python imports: the same, and a step

A room is a top-level folder or file of the package, but for __init__.py; a module is a .py file. An arrow is a pair
(importer, imported), imports in functions included; pairs that only TYPE_CHECKING imports make are counted apart.
`from a import b` is an import of the module a.b if there is one, else of a. Floors are the modules (rooms) on the
longest path of arrows, where those of an import circle are one.

The step is step 1 of an online run on the organism (8 of 64 cases, lag 0, labelled by the learner), through loop.run
and the real relabeler, in one process without Ray, vLLM and MLflow; step 0 warms it up. A move is a change of file from
one call or return to the next, of all functions of the package; frames of libraries in between do not count.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import networkx

PACKAGE = "introspect_ray"
Arrow = tuple[str, str]


def read_modules(repo: Path) -> dict[str, Path]:
    """The files of the package by module name; a folder's name is that of its __init__.py."""
    files = {file.relative_to(repo).with_suffix(""): file for file in sorted((repo / PACKAGE).rglob("*.py"))}
    return {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}


def room_of(module: str) -> str:
    """Example: introspect_ray.train.learner -> train."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(node: ast.AST, hint: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All import statements from `node` on, and whether they are for type hints alone."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, hint
    hints = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from imports(child, hint or child in hints)


def arrows(modules: Mapping[str, Path]) -> tuple[set[Arrow], set[Arrow]]:
    """(importer, imported) of the modules, whose imports are absolute: at run time, and for type hints alone."""
    found: tuple[set[Arrow], set[Arrow]] = set(), set()
    for module, file in modules.items():
        for statement, hint in imports(ast.parse(file.read_text(encoding="utf-8"))):
            prefix = f"{statement.module}." if isinstance(statement, ast.ImportFrom) else ""
            for alias in statement.names:
                target = prefix + alias.name
                while target and target not in modules:  # a name in a module
                    target = target.rpartition(".")[0]
                if target and target != module:
                    found[hint].add((module, target))
    return found[0], found[1] - found[0]


def floors_and_circles(nodes: Iterable[str], found: Iterable[Arrow]) -> tuple[int, list[list[str]]]:
    """Nodes on the longest path, a circle being one node; and the circles."""
    graph = networkx.DiGraph(found)
    graph.add_nodes_from(nodes)
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    return networkx.dag_longest_path_length(networkx.condensation(graph), default_weight=1) + 1, circles


def count_lines(file: Path) -> tuple[int, int]:
    """(lines of code: without blanks, comments and docstrings; all lines)."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    code = {at for at, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code), len(lines)


def measure_files(repo: Path) -> dict[str, Any]:
    """Rooms, modules, arrows, floors, circles, and [lines of code, all lines] of a checkout and of each room."""
    modules = read_modules(repo)
    real, hints = arrows(modules)
    between = {(room_of(a), room_of(b)) for a, b in real if room_of(a) != room_of(b)}
    lines: dict[str, list[int]] = {}
    for module, file in modules.items():
        before = lines.get(room_of(module), [0, 0])
        lines[room_of(module)] = [a + b for a, b in zip(before, count_lines(file))]
    facts: dict[str, Any] = {"rooms": len(lines.keys() - {"__init__"}), "modules": len(modules)}
    for name, nodes, own in (("modules", modules, real), ("rooms", lines, between)):
        floors, circles = floors_and_circles(nodes, own)
        facts |= {f"arrows_between_{name}": len(own), f"floors_of_{name}": floors, f"circles_of_{name}": circles}
    facts |= {"type_hint_arrows": len(hints), "lines": [sum(counts) for counts in zip(*lines.values())]}
    return {**facts, "lines_of_rooms": dict(sorted(lines.items(), key=lambda item: -item[1][0]))}


def package_folder() -> Path:
    """Of the package that Python imports."""
    return Path(importlib.import_module(PACKAGE).__path__[0]).resolve()


def found_in(*places: str) -> Any:
    """The first "module:name" that the package has, since names were moved between its modules.

    Looks for the file first: another checkout that is installed as editable may have the module too.
    """
    for place in places:
        module, _, name = place.partition(":")
        path = package_folder() / module.replace(".", "/")
        if path.is_dir() or path.with_suffix(".py").is_file():
            return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    raise SystemExit(f"structure: {PACKAGE} has none of {', '.join(places)}")


def measure_step(folder: str) -> dict[str, Any]:
    """Files entered and moves of one online step."""
    from introspect_ray.config import load_config, override
    from introspect_ray.loop import run

    flat = {"output_dir": folder, "steps": 1, "batch_size": 8, "task.train_cases": 64, "task.test_cases": 8}
    flat |= {"supervision.rule": "online", "rollout.engine": "learner", "rollout.serving_engine": "transformers"}
    cfg = load_config(None, flat)
    prepared = found_in("runs.preflight:prepare", "preflight:prepare")(cfg)
    train, policy = prepared.train, prepared.policy_path
    build = found_in("train.reference:build_reference", "reference:build_reference")
    reference = build(policy, train, prepared.cache_uri)
    learner = found_in("train.learner:Learner", "learner:Learner")(cfg, policy, reference, train.by_id)
    sources = found_in("labels.rules:Sources", "supervision:Sources")(train.labels, cfg.policy, {})
    make_relabeler = found_in("actors.relabeler:Relabeler", "distributed.relabeler:Relabeler")
    relabeler, events = make_relabeler(cfg, sources, f"{folder}/labels", 1), asyncio.new_event_loop()
    supply = SimpleNamespace(
        offer=lambda step, version, pairs: events.run_until_complete(relabeler.offer(step, version, 0, pairs)),
        fetch=lambda step: events.run_until_complete(relabeler.fetch(step, 0)),
    )
    m0 = {pair.case_id: pair for pair in learner.label_pairs(train, 0)}
    conductor = SimpleNamespace(report=lambda row: None)
    run(cfg, learner, supply, conductor, m0, train)
    cfg = override(cfg, {"steps": 2})
    path = watched(package_folder(), lambda: run(cfg, learner, supply, conductor, m0, train, start=1))
    events.run_until_complete(relabeler.finish())
    return count_moves(path)


def watched(package: Path, work: Callable[[], object]) -> list[str]:
    """Files of `package` in the order in which the calls and returns of `work`, in this thread, are in them."""
    path: list[str] = []

    @cache
    def inside(name: str) -> str | None:
        file = Path(name).resolve()
        return file.relative_to(package).with_suffix("").as_posix() if file.is_relative_to(package) else None

    def follow(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "return") and inside(frame.f_code.co_filename):
            at: FrameType | None = frame if event == "call" else frame.f_back
            while at and not inside(at.f_code.co_filename):  # back through frames of libraries
                at = at.f_back
            path.extend([inside(at.f_code.co_filename) or ""] if at else [])

    sys.setprofile(follow)
    work()
    sys.setprofile(None)
    return path


def count_moves(path: list[str]) -> dict[str, Any]:
    """Files and rooms entered, moves between them, and the most frequent of these."""
    rooms = [file.split("/")[0] for file in path]
    facts: dict[str, Any] = {"files": len(set(path)), "rooms": len(set(rooms))}
    for name, places in (("moves", path), ("room_moves", rooms)):
        moves = Counter(f"{a} -> {b}" for a, b in pairwise(places) if a != b)
        facts |= {name: sum(moves.values()), f"most_{name}": dict(moves.most_common(4))}
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, help="measure the files of this checkout, without a step")
    parser.add_argument("--small", action="store_true", help="as every benchmark; it changes nothing here")
    args = parser.parse_args()
    facts = measure_files(args.repo or package_folder().parent)
    if not args.repo:
        with tempfile.TemporaryDirectory() as folder:
            facts["step"] = measure_step(folder)
    print(*(f"{name:24} {value}" for name, value in facts.items()), sep="\n")
    ratio = facts["arrows_between_rooms"] / facts["rooms"]
    print(json.dumps({"name": "structure", "ratio": ratio, "goal": None, **facts}))


if __name__ == "__main__":
    main()
