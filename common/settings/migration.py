"""Settings keys of earlier versions: where each one went. Old recipes, checkpoints and ``--set`` stay valid.

The one table for all of them, read by `common.settings.load`. ``pyproject.toml`` lists the old keys as well, since
``flwr run --run-config`` takes only keys that stand there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import UserError
from common.settings.presets import FROM_PRESET

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
"""The keys that do what a key of an earlier version did, by its old name."""

FIXED: Mapping[str, Any] = {
    "clusters.starts": 10,
    "sgd.gamma": 0.8,
    "sgd.head-factor": 1.0,
    "sgd.nesterov": False,
    "sgd.period": 0.1,
    "style.images": 0,
    "transforms.blur": 0.0,
    "transforms.flip-vertical": 0.0,
    "transforms.hue": 0.0,
}
"""The keys that no recipe, preset or document set to anything else, with the value that the code has today."""


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
