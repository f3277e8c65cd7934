"""The order in which names are listed: as people count, so that site-2 comes before site-10."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

_T = TypeVar("_T")


def natural_key(text: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key by which site-10 follows site-9."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part)


def natural_items(named: Mapping[str, _T]) -> list[tuple[str, _T]]:
    """Return what is known by name in that order: as sites are listed everywhere."""
    return sorted(named.items(), key=lambda item: natural_key(item[0]))
