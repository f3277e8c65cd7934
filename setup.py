"""Builds the wheel: the folders of the checkout become parts of the one package ``siteseg``.

In a checkout, and in the bundle that Flower sends to sites, the packages are called ``server``, ``client``, ``common``
and ``partitions``. In somebody's site-packages such names would collide with everything. The wheel therefore holds
``siteseg/server`` and so on, with imports, names of modules and named commands rewritten. Whatever else is said of the
project stands in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = "siteseg"
PARTS = ("server", "client", "common", "partitions")
# as printed in a checkout, and as it works where the wheel is installed
SPELLINGS = (
    (r"--recipe recipes/([\w-]+)\.toml", r"--recipe \1"),
    (r"python -m server\b", "siteseg"),
    (r"python -m partitions\b", "siteseg partition"),
    (r"python -m client\b", "siteseg client"),
    (r"pip install '\.\[", "pip install 'siteseg["),
    (r'pip install "\.\[', 'pip install "siteseg['),
)


def module_names(root: Path = ROOT) -> set[str]:
    """Return the dotted name of every module and package of the parts."""
    names = set()
    for part in PARTS:
        for path in (root / part).rglob("*"):
            if path.is_dir() or path.suffix == ".py":
                names.add(".".join(path.relative_to(root).with_suffix("").parts))
    return names


def packaged(text: str, modules: set[str]) -> str:
    """Return a module's source as it stands in the wheel.

    Absolute imports of the parts, and strings that are the dotted name of a module, get the package's name in front.
    Raises `ValueError` for ``import common.x`` without a name of its own, which binds what the wheel does not have.
    """
    lines = text.splitlines(keepends=True)
    # a single word may be anything, "server" a value of a setting
    dotted = {name for name in modules if "." in name}
    places = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and _part(node.module) in PARTS:
            places.append((node.lineno, node.col_offset + len("from ")))
        elif isinstance(node, ast.Import) and any(_part(alias.name) in PARTS for alias in node.names):
            if len(node.names) > 1 or node.names[0].asname is None:
                raise ValueError(f"line {node.lineno}: write `from {node.names[0].name} import ...`")
            places.append((node.lineno, node.col_offset + len("import ")))
        elif isinstance(node, ast.Constant) and node.value in dotted:
            places.append((node.lineno, node.col_offset + len('"')))
    for number, column in sorted(places, reverse=True):
        # ast counts bytes
        line = lines[number - 1].encode()
        lines[number - 1] = (line[:column] + f"{PACKAGE}.".encode() + line[column:]).decode()
    found = "".join(lines)
    return respelled(found)


def respelled(text: str) -> str:
    """Return a text whose commands are called as they are where the wheel is installed."""
    for spelling, replacement in SPELLINGS:
        text = re.sub(spelling, replacement, text)
    return text


def _part(module: str | None) -> str:
    return (module or "").partition(".")[0]


def copy_parts(target: Path, root: Path = ROOT) -> None:
    """Write the parts and the recipes, as they stand in the wheel, below ``target``, the folder of the package."""
    modules = module_names(root)
    for folder in (PACKAGE, *PARTS, "recipes"):
        for path in sorted((root / folder).rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            inside = path.relative_to(root / PACKAGE if folder == PACKAGE else root)
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".py", ".toml"):
                source = path.read_text(encoding="utf-8")
                text = packaged(source, modules) if path.suffix == ".py" else respelled(source)
                (target / inside).write_text(text, encoding="utf-8")
            else:
                shutil.copyfile(path, target / inside)


class BuildWheel(build_py):
    """Writes the parts into the package; an editable installation keeps the checkout as it is."""

    def run(self) -> None:
        """Build; what an earlier build left behind would travel along."""
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.build_lib, ignore_errors=True)
        copy_parts(Path(self.build_lib) / PACKAGE)


class Editable(editable_wheel):
    """Makes the folders of the checkout importable under their own names."""

    def run(self) -> None:
        """Add the folders to the packages of the distribution, which are those of the wheel otherwise."""
        self.distribution.packages = find_packages(include=[f"{part}*" for part in (PACKAGE, *PARTS)])
        super().run()


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWheel, "editable_wheel": Editable})
