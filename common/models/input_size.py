"""Input size of a backbone: as configured, or one that follows the images with a fixed budget of pixels."""

from __future__ import annotations

import math
import re
import statistics

from common.data.images import entry_size
from common.data.manifest import Shard
from common.models.backbone import backbone_entry
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model

# images of a shard that are asked for their size, evenly spread: one header each
_LOOKED_AT = 200
# the patch of most vision transformers, where a name says none
_PATCH = 16


def fitted_model(model: Model, aspect: float) -> Model:
    """Return ``model`` with a height and width of about ``model.pixels`` pixels and this height over width.

    Sides are those that the backbone takes: multiples of its patch, or of its stride (and one more pixel where cells
    are centered on the first one). With ``pixels`` 0 nothing changes.
    """
    if not model.pixels:
        return model
    facts = backbone_entry(model).facts
    named = re.search(r"patch(\d+)", model.backbone)
    unit = facts.stride or facts.unit or (int(named.group(1)) if named else _PATCH)
    more = 1 if facts.stride else 0

    def side(pixels: float) -> int:
        return max(round(pixels / unit), 2) * unit + more

    height = side(math.sqrt(model.pixels * aspect))
    return model.model_copy(
        update={"height": height, "width": side(math.sqrt(model.pixels / aspect)), "pixels": 0}
    )


def fitted_to(config: RunConfig, shard: Shard) -> RunConfig:
    """Return settings whose input size follows the images of a shard (see `fitted_model`): their median aspect."""
    if not config.model.pixels or not len(shard):
        return config
    return config.model_copy(update={"model": fitted_model(config.model, _aspect(shard))})


def _aspect(shard: Shard) -> float:
    sizes = [entry_size(shard, index) for index in range(0, len(shard), max(1, len(shard) // _LOOKED_AT))]
    return statistics.median(height / width for height, width in sizes)
