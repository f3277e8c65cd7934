"""Loads settings: layers of keys over a preset, recipes, ``key=value`` words, and the form that travels."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import UserError, user_error
from common.settings.migration import FIXED, MOVED, migrated
from common.settings.presets import FROM_PRESET, PRESETS
from common.settings.schema import RunConfig
from common.settings.section import Scalar, flatten, kebab, unflatten

BASE = "base"
"""The key by which a recipe names the one that it changes."""


def default_flat() -> dict[str, Scalar]:
    """Return what ``pyproject.toml`` has to list: every key, ``"preset"`` where a preset may decide.

    Keys of earlier versions follow their section, as ``"preset"``, which says nothing until somebody sets them.
    """
    governed = {key for preset in PRESETS.values() for key in preset}
    default = {key: FROM_PRESET if key in governed else value for key, value in RunConfig().to_flat().items()}
    return default | dict.fromkeys((*MOVED, *FIXED), FROM_PRESET)


def load_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Merge layers of settings (later ones win) over the chosen preset, and check them.

    Each layer may be flat or nested. A value of ``"preset"`` means: as the preset says. Raises
    `UserError` with the key, the value given and what was expected.
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given |= migrated(flatten(layer))
    known = RunConfig().to_flat()
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else "see common/settings/ for the list."
            raise UserError(f"Unknown settings key '{key}': {hint}")
    given = {key: value for key, value in given.items() if value != FROM_PRESET}
    preset = given.get("preset", "default")
    if preset not in PRESETS:
        raise UserError(f"Setting 'preset' is {preset!r}; expected one of {', '.join(PRESETS)}.")
    settings = unflatten(PRESETS[preset] | given)
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        raise user_error(error, "Setting", key=kebab, whole="The settings do not fit together") from None
    return config


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe (TOML) as flat settings; raises `UserError` where it is missing or broken.

    A recipe may be a few lines on top of another: ``base = "NAME"`` takes all settings of NAME.toml in the
    same folder, and the recipe's own win. A base may have a base itself.
    """
    file = Path(path)
    settings = _read_toml(file)
    read = [file.stem]
    while BASE in settings:
        name = settings.pop(BASE)
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise UserError(f"Recipe {file} has the base {name!r}; expected the name of a recipe beside it.")
        if name in read:
            raise UserError(
                f"Recipe {file} is its own base ({' on '.join([*read, name])}); break the circle."
            )
        read.append(name)
        settings = _read_toml(file.with_name(f"{name}.toml")) | settings
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.toml"))) if file.parent.is_dir() else ""
        raise UserError(
            f"Recipe {file} does not exist" + (f"; {file.parent} holds: {known}." if known else ".")
        )
    try:
        return flatten(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"Recipe {file} is not valid TOML: {error}.") from None


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Read ``key=value`` words as TOML scalars; a bare word counts as a string."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"Setting {assignment!r} is not of the form key=value, for example local.steps=12."
            )
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value.strip()
    return settings


def to_wire(config: RunConfig) -> str:
    """Return what differs from the preset, as short JSON: settings travel with every message."""
    preset = load_config({"preset": config.preset}).to_flat()
    return json.dumps(
        {key: value for key, value in config.to_flat().items() if value != preset[key] or key == "preset"},
        separators=(",", ":"),
    )


def from_wire(text: str) -> RunConfig:
    """Read what `to_wire` wrote; raises `UserError` for settings that this version does not know."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise UserError(
            "The settings in the server's message are not JSON; run the same release on both sides."
        )
    return load_config(given)


def from_record(given: Any) -> RunConfig:
    """Read what `RunConfig.to_json` wrote, parsed, in this version or an earlier one.

    Raises pydantic's `ValidationError`. Conflicts are no matter: that run is over.
    """
    return RunConfig.model_validate(unflatten(migrated(flatten(given))) if isinstance(given, dict) else given)
