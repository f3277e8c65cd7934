"""Loads settings: layers of keys over a preset, recipes, ``key=value`` words, and the form that travels.

Presets of task `unsupervised` and keys of earlier versions stand here, each in one table. A preset is the difference
to the defaults of the sections, which are preset ``default``. Facts on the published method: FUSS (federated
unsupervised semantic segmentation) on STEGO's objective.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import UserError, user_error
from common.settings.schema import RunConfig
from common.settings.section import Scalar, flatten, kebab

# keys that stood flat in [loss] when all objectives shared one section
_CORRESPONDENCE = (
    "intra-weight",
    "inter-weight",
    "negative-weight",
    "shift",
    "intra-shift",
    "inter-shift",
    "negative-shift",
    "negatives",
    "negative-draw",
    "salience",
    "zero-clamp",
    "stabilize",
)

# The keys that do what a key of an earlier version did, by its old name. pyproject.toml lists the old keys as well:
# `flwr run --run-config` takes only keys that stand there.
MOVED: Mapping[str, tuple[str, ...]] = (
    {f"loss.spectral-{key}": (f"loss.spectral.{key}",) for key in ("tolerance", "ridge", "whiten")}
    | {f"loss.{key}": (f"loss.correspondence.{key}",) for key in _CORRESPONDENCE}
    | {
        "loss.correspondence-weight": ("loss.correspondence.weight",),
        # one key steered two objectives
        "loss.samples": ("loss.correspondence.samples", "loss.smoothness.samples"),
        "loss.pointwise": ("loss.correspondence.pointwise", "loss.smoothness.pointwise"),
        "loss.smooth-intra-shift": ("loss.smoothness.intra-shift",),
        "loss.smooth-negative-shift": ("loss.smoothness.negative-shift",),
        "loss.temperature": ("loss.smoothness.temperature",),
        "loss.momentum": ("loss.smoothness.momentum",),
        "loss.codebook": ("loss.modularity.codebook",),
        "loss.codebook-rounds": ("loss.modularity.codebook-rounds",),
        "loss.projection": ("loss.modularity.projection",),
        "loss.cell": ("loss.modularity.cell",),
    }
)

# The keys that no recipe, preset or document set to anything else, with the value that the code has today: old files
# that list every key are still read.
FIXED: Mapping[str, Any] = {
    "clusters.starts": 10,
    "sgd.gamma": 0.8,
    "sgd.nesterov": False,
    "sgd.period": 0.1,
    "style.images": 0,
    "transforms.blur": 0.0,
    "transforms.flip-vertical": 0.0,
    "transforms.hue": 0.0,
}


def migrated(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings under today's keys; an old key wins over the default that stands beside it.

    Raises `UserError` for a key of `FIXED` with another value.
    """
    found = {key: value for key, value in flat.items() if key not in MOVED and key not in FIXED}
    for key in FIXED.keys() & flat.keys():
        if flat[key] not in (FIXED[key], FROM_PRESET):
            raise UserError(
                f"Setting '{key}' is {flat[key]!r} but always {FIXED[key]!r} in this version; leave it out."
            )
    for old, value in flat.items():
        if old in MOVED and value != FROM_PRESET:
            found |= dict.fromkeys(MOVED[old], value)
    return found


# the value in pyproject.toml that leaves a key to the preset
FROM_PRESET = "preset"

_FUSS_OBJECTIVE: dict[str, str | int | float | bool] = {
    # the Cityscapes configuration of the published code
    "loss.objective": "correspondence",
    "loss.correspondence.intra-weight": 1.0,
    "loss.correspondence.inter-weight": 0.577453,
    "loss.correspondence.negative-weight": 0.905876,
    "loss.correspondence.shift": "fixed",
    "loss.correspondence.intra-shift": 0.458285,
    "loss.correspondence.inter-shift": 0.175435,
    "loss.correspondence.negative-shift": 0.313612,
    "local.neighbours": 2,
    # the head of STEGO, which FUSS federates
    "model.dim": 70,
    "model.nonlinear": True,
}

PRESETS: dict[str, dict[str, str | int | float | bool]] = {
    "default": {},
    # the published method, faithfully: raw-space FedCC by maximin, weights by batches, Adam reset every round,
    # and what is odd in it; docs/presets.md lists what is left out on purpose
    "fuss-ref": _FUSS_OBJECTIVE
    | {
        "model.height": 224,
        "model.width": 224,
        "model.resize": "nearest",
        "model.crop": "center",
        "local.neighbour-dropout": 0.1,  # the features of the search still pass the head's dropout
        "local.prox-parameters": "nonlinear",  # where FedProx is switched on
        "loss.correspondence.negative-draw": "published",
        "centroids.merge": "fedcc-maximin",
        "centroids.spherical": False,
        "centroids.weighted": False,
        "centroids.keep-index": False,
        "centroids.polish-passes": 0,
        "aggregation.weights": "batches",
        "local.keep-optimizer": False,
    },
    # masks without labels by closed forms alone; figures stand in docs/decisions.md
    "label-free": {
        "loss.objective": "principal",
        "model.dim": 256,
        # one budget for every set, that of 352 x 480: more does not help street scenes, less harms steel
        "model.pixels": 170_000,
        "codes.center": "auto",
        "codes.reach": 70.0,
        "centroids.over": 40,
        "centroids.starts": 6,
        "refine.colors": 1.0,
    },
    # the same objective with its faults mended: counts and directions matter, optimizer state survives
    "fuss-clean": _FUSS_OBJECTIVE
    | {
        "centroids.merge": "matched",
        "centroids.polish-passes": 0,
        "aggregation.weights": "images",
        "local.keep-optimizer": True,
    },
}


# where recipes that are asked for by name lie
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# the key by which a recipe names the one that it changes
BASE = "base"


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
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise user_error(error, "Setting", key=kebab, whole="The settings do not fit together") from None


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe (TOML), a file or the name of one of the project's, as flat settings.

    Raises `UserError` where it is missing or broken.

    A recipe may be a few lines on top of another: ``base = "NAME"`` takes all settings of NAME.toml in the
    same folder, and the recipe's own win. A base may have a base itself.
    """
    file = Path(path)
    if file.name == str(path) and not file.suffix and not file.is_file():
        file = RECIPES / f"{path}.toml"
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
