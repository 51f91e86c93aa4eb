"""The shape of the package: rooms, arrows, floors, circles and lines; and the way of one online step through it.

python -m benchmarks.structure [--repo DIR]. A room is an entry of introspect_ray/ (a folder or a file). An arrow is a
pair of rooms (of modules) of which the first imports the second, anywhere in its code but for type checking alone.
Floors: the longest chain of imports, a circle counted as one. Code lines are those with a token
other than a comment or a docstring. The step (this checkout only) is one step of loop.run after two to warm up, online,
labelled by the learner, without Ray, vLLM and MLflow: files of the package that a call enters, and moves from one file
to another, as sys.setprofile sees them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import tokenize
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

PACKAGE = "introspect_ray"
ROOT = Path(__file__).resolve().parents[1]


def imports(path: Path, root: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, by dotted name."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    left_out = {id(inner) for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inside or {node.module}
    return (found & modules) - {module_name(path, root)}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def components(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Number of the circle (strongly connected component) of each module; Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    group: dict[str, int] = {}

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
            if other not in group:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            number = len(set(group.values()))
            while True:
                member = stack.pop()
                group[member] = number
                if member == node:
                    break

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return group


def floors(arrows: dict[str, set[str]], group: dict[str, int]) -> int:
    below: dict[int, set[int]] = defaultdict(set)
    for node, others in arrows.items():
        below[group[node]] |= {group[other] for other in others} - {group[node]}
    depth: dict[int, int] = {}

    def height(number: int) -> int:
        if number not in depth:
            depth[number] = 1 + max(map(height, below[number]), default=0)
        return depth[number]

    return max(map(height, set(group.values())))


def code_lines(path: Path) -> int:
    """Lines with code: no blank lines, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    skip: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skip |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in quiet:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - skip)


def shape(repo: Path) -> dict[str, Any]:
    """Everything that the files alone say."""
    paths = sorted((repo / PACKAGE).rglob("*.py"))
    names = {module_name(path, repo): path for path in paths}
    arrows = {name: imports(path, repo, set(names)) for name, path in names.items()}
    pairs = {(room_of(a), room_of(b)) for a, others in arrows.items() for b in others}
    between = {(a, b) for a, b in pairs if a != b}
    rooms = {room: {b for a, b in between if a == room} for room in map(room_of, names)}
    group = components(arrows)
    lines: Counter[str] = Counter()
    for name, path in names.items():
        lines[room_of(name)] += code_lines(path)
    return {
        "rooms": len(set(map(room_of, names))),
        "modules": len(names),
        "flat_modules": sum(name.count(".") == 1 and path.name != "__init__.py" for name, path in names.items()),
        "arrows_between_rooms": len(between),
        "arrows_between_modules": sum(map(len, arrows.values())),
        "floors_of_rooms": floors(rooms, components(rooms)),
        "floors_of_modules": floors(arrows, group),
        "circles": sum(count > 1 for count in Counter(group.values()).values()),
        "code_lines": sum(lines.values()),
        "code_lines_by_room": dict(sorted(lines.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, default=ROOT, help="another checkout: its files alone are measured")
    repo = parser.parse_args().repo.resolve()
    found = shape(repo)
    if repo == ROOT:
        from benchmarks.step_trace import trace_step

        found["step"] = trace_step()
    for key, value in found.items():
        print(f"{key:24} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
