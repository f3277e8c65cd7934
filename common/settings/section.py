"""Settings sections: the base class of all groups, and dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

Scalar = str | int | float | bool


def kebab(name: str) -> str:
    """Return a field's name as a settings key spells it."""
    return name.replace("_", "-")


class Section(BaseModel):
    """A group of settings: frozen, no unknown keys, kebab-case names outside, snake_case inside."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True, allow_inf_nan=False
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"local": {"steps": 3}}`` into ``{"local.steps": 3}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
