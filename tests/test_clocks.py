"""Does the project measure waiting by a clock that nobody can set?"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import ROOT

ALLOWED = {
    "client/work/teachers.py": "the age of files, which have wall-clock times",
    "client/join/connection.py": "the days that a certificate is good for",
}
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}


def wall_clocks(source: str) -> list[str]:
    """Return where a module asks what time it is."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"{call.value.id}.{call.attr}, line {call.lineno}"
        for call in calls
        if isinstance(call, ast.Attribute)
        and isinstance(call.value, ast.Name)
        and (call.value.id, call.attr) in WALL
    ]


def test_only_ages_and_dates_come_from_the_wall_clock() -> None:
    assert wall_clocks("import time\nend = time.time() + 5") == ["time.time, line 2"]
    found: dict[str, list[str]] = {}
    for package in ("server", "client", "common"):
        for path in Path(ROOT / package).rglob("*.py"):
            if calls := wall_clocks(path.read_text(encoding="utf-8")):
                found[path.relative_to(ROOT).as_posix()] = calls
    assert set(found) <= set(ALLOWED), found
