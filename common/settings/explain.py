"""Settings documentation: what each key means, and which values it takes.

Both are read from the fields of `RunConfig`, so that they are what the program checks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.settings.objectives import Loss
from common.settings.schema import RunConfig
from common.settings.section import kebab

SIGNS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}


def explanations(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, str]:
    """Return a line for each dotted key: what it means, then its values or bounds; empty if neither is said."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = prefix + kebab(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= explanations(field.annotation, f"{key}.")
        else:
            allowed = values(field)
            found[key] = " ".join(
                part for part in (field.description or "", f"({allowed})" if allowed else "") if part
            )
    if issubclass(model, Loss):
        for name, section in model.sections().items():
            found |= explanations(section, f"{prefix}{name}.")
    return found


def values(field: FieldInfo) -> str:
    """Return which values a field takes: its choices, or its bounds; empty for any of its type."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(json.dumps(choice) for choice in get_args(field.annotation))
    return ", ".join(_bound(limit) for limit in field.metadata if type(limit) in SIGNS)


def _bound(limit: Any) -> str:
    sign = SIGNS[type(limit)]
    (value,) = (getattr(limit, name) for name in ("ge", "gt", "le", "lt") if hasattr(limit, name))
    return f"{sign} {value:g}"


def explained_toml(config: RunConfig, names: Mapping[str, str] | None = None) -> str:
    """Return the settings as TOML, each below a comment that says what it means.

    ``names`` says by key, in lines, which registered names a value may be.
    """
    meaning = explanations()
    lines = []
    for key, value in config.to_flat().items():
        if meaning[key]:
            lines.append(f"# {meaning[key]}")
        lines += [f"#   {line}" for line in (names or {}).get(key, "").splitlines()]
        lines.append(f"{key} = {json.dumps(value)}\n")
    return "\n".join(lines)
