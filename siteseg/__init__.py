"""Segments images with models that were trained over many sites.

    import siteseg

    model = siteseg.load("runs/own-pictures-seed0")
    mask = model.segment("image.jpg")          # uint8 [H, W]; model.names[mask[y, x]] is the name of a pixel

Commands are reached by ``siteseg`` in a shell; ``siteseg --help`` lists them. Nothing on the way from an image to its
mask needs Flower.
"""

from __future__ import annotations

from common.errors import UserError
from siteseg.model import TrainedModel, load
from siteseg.version import __version__

__all__ = ["TrainedModel", "UserError", "__version__", "load"]
