"""Do imports run only from server, client and partitions down to common?"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "partitions": {"partitions", "common"},
    "siteseg": {"siteseg", "server", "client", "common", "partitions"},
}
MESSAGE_TYPES = {"Message", "ArrayRecord", "RecordDict", "ConfigRecord", "MetricRecord", "Array"}


def imports(path: Path) -> list[tuple[str, str, bool]]:
    """Return (module, name, only for type checking) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            guarded |= {inner for statement in node.body for inner in ast.walk(statement)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node in guarded) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module or "", alias.name, node in guarded) for alias in node.names]
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_downwards(package: str) -> None:
    for path in files(package):
        for module, _, _ in imports(path):
            top = module.split(".")[0]
            if top in ALLOWED:
                assert top in ALLOWED[package], f"{path.relative_to(ROOT)} imports {module}"


def test_common_knows_flower_only_in_wire() -> None:
    for path in files("common") + files("partitions"):
        if path != ROOT / "common" / "wire.py":
            assert all(module.split(".")[0] != "flwr" for module, _, _ in imports(path)), path


def test_message_types_are_used_only_in_wire_and_in_the_apps_signatures() -> None:
    # client/app.py has to build the one reply that Flower's handler returns
    for path in files("server") + files("client"):
        if path == ROOT / "client" / "app.py":
            continue
        for module, name, guarded in imports(path):
            if module.startswith("flwr") and name in MESSAGE_TYPES:
                assert guarded, f"{path.relative_to(ROOT)} imports {name} outside of type checking"


def test_the_oracle_sees_a_forbidden_import(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from server.loop.run import run\n")
    assert imports(bad) == [("server.loop.run", "run", False)]
