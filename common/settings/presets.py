"""Presets of task `unsupervised`: the settings that each one changes.

A preset is the difference to the defaults of the sections, which are preset ``default``. Facts on
the published method: FUSS (federated unsupervised semantic segmentation) on STEGO's objective.
"""

from __future__ import annotations

FROM_PRESET = "preset"
"""The value in ``pyproject.toml`` that leaves a key to the preset."""

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
    # the same objective with its faults mended: counts and directions matter, optimizer state survives
    "fuss-clean": _FUSS_OBJECTIVE
    | {
        "centroids.merge": "matched",
        "centroids.polish-passes": 0,
        "aggregation.weights": "images",
        "local.keep-optimizer": True,
    },
}
