"""Writes the section ``[tool.flwr.app.config]`` of pyproject.toml from the settings: ``python -m common.settings``."""

from __future__ import annotations

import json
from pathlib import Path

from common.settings.load import default_flat

START = "[tool.flwr.app.config]"


def config_section() -> str:
    """Return the section as TOML, a table for each group of keys."""
    tables: dict[str, list[str]] = {}
    for key, value in default_flat().items():
        group, _, leaf = key.rpartition(".")
        tables.setdefault(group, []).append(f"{leaf} = {json.dumps(value)}\n")
    lines = [
        f'{START}  # written by `python -m common.settings`; "preset" leaves a key to the preset\n',
        *tables.pop(""),
    ]
    for group, entries in tables.items():
        lines += [f"\n[tool.flwr.app.config.{group}]\n", *entries]
    return "".join(lines)


def with_section(text: str) -> str:
    """Return pyproject.toml's text with the section written anew, all other tables as they were."""
    before, _, rest = text.partition(START)
    others = rest.split("\n[")
    kept = [part for part in others[1:] if not part.startswith(START[1:-1])]
    return before + config_section() + "".join(f"\n[{part}" for part in kept)


if __name__ == "__main__":
    file = Path("pyproject.toml")
    file.write_text(with_section(file.read_text(encoding="utf-8")), encoding="utf-8")
