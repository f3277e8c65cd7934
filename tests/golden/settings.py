"""States for every float setting which golden figures feel it, or why none does.

A setting that is 0 in all golden runs needs no line: 0 is off, and 0 times anything stays 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from common.errors import UserError
from common.settings.objectives import Loss
from common.settings.schema import RunConfig

FACTOR = 5.0
"""A typing error or a lost default changes a setting by less than this only rarely."""

RUNS: dict[str, tuple[str, ...]] = {
    "default": ("loss.spectral.tolerance", "loss.spectral.ridge"),
    "label-free": (
        "codes.reach",
        "refine.colors",
        "refine.prior",
        "refine.radius",
        "refine.temperature",
    ),
    "fuss-ref": (
        "model.dropout",
        "local.lr",
        "local.centroid-lr",
        "local.neighbour-dropout",
        "loss.correspondence.weight",
        "loss.correspondence.intra-weight",
        "loss.correspondence.inter-weight",
        "loss.correspondence.negative-weight",
        "loss.correspondence.intra-shift",
        "loss.correspondence.inter-shift",
        "loss.correspondence.negative-shift",
    ),
    "supervised": (
        "network.dropout",
        "transforms.scale-min",
        "transforms.scale-max",
        "sgd.lr",
        "sgd.momentum",
        "sgd.power",
    ),
    "adaptation": (
        "network.site-statistics",
        "source.lr",
        "teacher.confidence",
        "teacher.fraction",
        "teacher.weight",
        "teacher.distill-weight",
        "teacher.distill-alpha",
    ),
}
"""The settings that each golden run feels."""

ROUNDS: dict[str, tuple[str, ...]] = {
    "anchors/moon": ("local.moon-temperature",),
    "smoothness": (
        "loss.smoothness.intra-shift",
        "loss.smoothness.negative-shift",
        "loss.smoothness.temperature",
        "loss.smoothness.momentum",
    ),
    "correspondence/crf": (
        "loss.crf-appearance",
        "loss.crf-closeness",
        "loss.crf-alpha",
        "loss.crf-beta",
        "loss.crf-gamma",
    ),
}
"""The settings of other objectives, felt by their two rounds at one site (``objectives.json``)."""

_TIME = "a limit of time that no site reaches here"
_MERGE = "the runs take the mean and no server optimizer; head-rules.json and server-optimizers.json pin the others"
_REDUCTION = "the runs reduce by 'mean'; network-losses.json pins the other reductions"

_STUDENT = "of task student, whose run is in test_student.py; test_certainty.py pins both"

UNUSED: dict[str, str] = {
    "sites.deadline-seconds": _TIME,
    "sites.wait-seconds": _TIME,
    "simulation.decoded": "GB of images that are kept decoded; test_decoded.py pins that no batch depends on it",
    "sites.largest-share": "a limit that no site reaches here",
    "aggregation.trim": _MERGE,
    "aggregation.lr": _MERGE,
    "aggregation.momentum": _MERGE,
    "aggregation.second-moment": _MERGE,
    "aggregation.tau": _MERGE,
    "transforms.area-min": "of transforms.crop 'resized', the runs crop at random",
    "transforms.area-max": "of transforms.crop 'resized', the runs crop at random",
    "reduction.power": _REDUCTION,
    "reduction.weight": _REDUCTION,
    "reduction.hard-share": _REDUCTION,
    "style.mix": "of style.transfer 'spectra', the runs take 'fourier'",
    "sgd.head-factor": "1 in the runs, as every network but a student has it; test_steps.py pins the rates",
    "student.keep": _STUDENT,
    "student.balance": _STUDENT,
    "privacy.quorum": "of secure summation, which is off",
    "privacy.delta": "of the privacy accountant, which counts nothing without noise",
}
"""Settings that no golden run uses, and why."""


def float_settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the key of every float of the settings, as the model declares them."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from float_settings(kind, f"{key}.")
        elif kind is float:
            yield key
    if issubclass(model, Loss):
        for name, section in model.sections().items():
            yield from float_settings(section, f"{prefix}{name}.")


def altered(key: str, config_of: Callable[..., RunConfig]) -> RunConfig:
    """Return settings with one multiplied by `FACTOR`, or divided where that much is refused."""
    value: Any = config_of().to_flat()[key]
    try:
        return config_of(**{key: value * FACTOR})
    except UserError:
        return config_of(**{key: value / FACTOR})
