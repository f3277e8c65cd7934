"""Settings of what follows a head without labels: codes inside an image, many clusters, pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.settings.section import Section


class Things(Section):
    """The one question about the images that no figure without labels answers."""

    each_picture: Literal["several", "one"] = Field(
        "several",
        description="does an image usually show several of the things that are to be told apart, or one kind of "
        "them before a background; 'one' parts what stands out and finds kinds of images",
    )


class Codes(Section):
    """What happens to the codes of an image before they are compared with centroids."""

    center: Literal["none", "image", "auto"] = Field(
        "none",
        description="image: every image loses its mean code; auto: both are fitted, and codes are centered if clusters "
        "would otherwise say which image it is more than what is in it",
    )
    reach: float = Field(
        0.0,
        ge=0,
        description="how far codes are smoothed along like colors, in pixels of the input; 0: not at all",
    )


class Refine(Section):
    """How maps of the feature grid become maps of pixels, wherever images are scored or segmented."""

    stride: int = Field(
        0,
        ge=0,
        description="pixels between features of an image that is segmented, as model.stride; 0: as while training",
    )
    colors: float = Field(
        0.0,
        ge=0,
        description="weight of the colors of the image itself, one Gaussian a cluster (usual: 1); 0: none",
    )
    temperature: float = Field(
        0.2, gt=0, description="cosines are divided by it where they are the prior of colors"
    )
    prior: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the coarse map in the local prior; the rest is the map as refined so far",
    )
    radius: float = Field(
        8.0, gt=0, description="half the window of the local prior, in pixels of the input: half a patch"
    )
    steps: int = Field(8, ge=1, description="expectation-maximization steps of the Gaussians")
