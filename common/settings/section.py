"""Settings sections: the base class of all groups, and the check of names that stand in a registry."""

from __future__ import annotations

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
