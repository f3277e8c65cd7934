"""Holds the shape of the packages: order of folders, no import circle, sizes, names, places that ask for a task."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("common", "partitions", "client", "server", "siteseg")
MOST_LINES = 300
MOST_FILES = 15
MOST_TASK_QUESTIONS = 4

# From the ground up: a folder, or a file at the top of a package, imports only from those before it.
ORDER = {
    "common": [
        "errors",
        "order",
        "seeds",
        "wire_arrays",
        "wire",
        "registry",
        "system",
        "settings",
        "data",
        "checkpoint",
        "figures",
        "styles",
        "models",
        "models/backbones",
        "models/networks",
        "training",
        "features",
        "clustering",
        "evaluation",
        "losses",
        "privacy",
    ],
    "partitions": ["drawing", "rules", "leaf", "sources", "domains", "plan", "figure", "output", "__main__"],
    "client": [
        "site",
        "policy",
        "reasons",
        "state",
        "ledger",
        "statistics",
        "join",
        "privacy",
        "work",
        "app",
        "__main__",
    ],
    "server": [
        "run_dir",
        "transport",
        "states",
        "aggregation",
        "centroids",
        "report",
        "adaptation",
        "inference",
        "privacy",
        "settings",
        "evaluation",
        "preflight",
        "tasks",
        "naming",
        "commands",
        "loop",
        "app",
        "simulate",
        "options",
        "run_commands",
        "__main__",
    ],
    "siteseg": ["version", "model", "doctor", "command", "__main__"],
}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def edges(paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return who imports whom, imports inside functions and for type checking included."""
    found: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted = [part if part in paths else node.module for part in parts]
            else:
                continue
            found[name] |= {module for module in wanted if module in paths and module != name}
    return found


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected parts of more than one node (Tarjan 1972), each in order of name."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def folder(module: str, paths: Mapping[str, Path]) -> str:
    """Return the folder that a module lies in; a file at the top of a package is a folder of its own."""
    inner = paths[module].relative_to(ROOT)
    return str(inner.parent) if len(inner.parts) > 2 else str(inner.with_suffix(""))


def folder_edges(paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return which folder imports from which others."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, imported in edges(paths).items():
        here = folder(module, paths)
        found[here] |= {folder(other, paths) for other in imported} - {here}
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles(edges(modules())) == []


def test_no_folder_imports_itself_in_a_circle() -> None:
    assert circles(folder_edges(modules())) == []


def test_the_search_for_circles_finds_one() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", sorted(ORDER))
def test_folders_import_only_from_those_below(package: str) -> None:
    rank = {f"{package}/{name}": place for place, name in enumerate(ORDER[package])}
    for here, others in folder_edges(modules()).items():
        for other in others:
            if here in rank and other.startswith(f"{package}/"):
                assert rank[other] < rank[here], f"{here} imports from {other}, which stands above it"


@pytest.mark.parametrize("package", sorted(ORDER))
def test_every_folder_has_its_place_in_the_order(package: str) -> None:
    paths = modules()
    inside = {folder(module, paths) for module in paths if module.startswith(f"{package}.")}
    assert inside == {f"{package}/{name}" for name in ORDER[package]}


def test_no_file_is_too_long_and_no_folder_too_wide() -> None:
    width: dict[Path, int] = defaultdict(int)
    for path in modules().values():
        width[path.parent] += 1
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines"
    for where, count in width.items():
        assert count <= MOST_FILES, f"{where.relative_to(ROOT)} holds {count} files"


def public_names(path: Path) -> set[str]:
    """Return the public names that a file defines at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


# `app` is the name that Flower asks for, `main` that of every command, `log` that of every module's logger
SHARED_NAMES = {"app", "main", "log"}


def test_no_public_name_is_defined_twice() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for module, path in modules().items():
        for name in public_names(path) - SHARED_NAMES:
            where[name].append(module)
    assert {name: found for name, found in where.items() if len(found) > 1} == {}


def headline(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def test_every_file_says_in_a_statement_what_it_holds() -> None:
    for path in modules().values():
        first = headline(path)
        assert first and not first.endswith("?"), f"{path.relative_to(ROOT)}: {first!r}"


TASKS = ("unsupervised", "supervised", "adaptation")


def task_questions(text: str) -> list[int]:
    """Return the lines that compare something with a task's name: operators, match, dictionary keys."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        else:
            continue
        constants = [inner for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Constant)]
        if any(constant.value in TASKS for constant in constants):
            found.append(node.lineno)  # type: ignore[attr-defined]
    return found


def test_the_task_is_asked_for_in_few_places() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules().values()
        for line in task_questions(path.read_text(encoding="utf-8"))
    ]
    reads = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in modules().values()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\.task\s*(==|!=|in\b|not in\b)|match .*\.task\b|isinstance\(\w*task", line)
    ]
    assert len(set(places + reads)) <= MOST_TASK_QUESTIONS, set(places + reads)


def test_the_search_for_task_questions_sees_every_spelling() -> None:
    spellings = (
        'x.task == "supervised"',
        'x.task in ("adaptation", "supervised")',
        'match x:\n    case "unsupervised":\n        pass',
        'table = {"unsupervised": 1}',
    )
    assert [len(task_questions(text)) for text in spellings] == [1, 1, 1, 1]
