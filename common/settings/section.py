"""Settings sections: the base class of all groups, and flat keys from nested ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from common.errors import UserError
from common.registry import Registry

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


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ``{"local.steps": 3}`` into ``{"local": {"steps": 3}}``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return nested


class NameIn:
    """Annotation of a field that holds a name of a registry: ``Annotated[str, NameIn(OBJECTIVES)]``."""

    def __init__(self, registry: Registry[Any, Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name when settings are read, not when this module is: registries fill themselves lazily."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        try:
            self.registry.entry(name)
        except UserError as error:
            raise ValueError(str(error).rstrip(".?")) from None
        return name
