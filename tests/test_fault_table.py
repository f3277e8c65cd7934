"""Does every test that the table of faults names exist, and is every number of the table explained?"""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "faults.md"


def test_the_table_names_tests_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("## Long runs")[0]
    named = re.findall(r'^\[(\d+)\]: (\S+) "(\w+)"$', text, flags=re.M)
    assert len(named) >= 10
    for _, path, test in named:
        assert f"def {test}(" in (PAGE.parent / path).read_text(encoding="utf-8"), (path, test)
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    used = {number for row in rows for number in re.findall(r"\[(\d+)\]", row)}
    assert used == {number for number, _, _ in named}
    assert len(rows) >= 30 and all(row.count(" | ") == 3 for row in rows)


def test_every_row_has_a_test() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Long runs")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [row[0] for row in cells if not re.search(r"\[\d+\]", row[-1])] == []
