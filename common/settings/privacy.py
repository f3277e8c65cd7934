"""Settings section of what others may learn of a site: secure summation, clipping, noise, small counts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.settings.section import Section


class Privacy(Section):
    """Secure summation, clipping, noise and small counts: what others may learn of a site (`docs/privacy.md`)."""

    secure_sum: bool = Field(
        False, description="the server sees totals over sites only; five messages a round instead of one"
    )
    quorum: float = Field(
        0.66, gt=0.5, le=1, description="secure-sum: share of a round's sites that have to stay to its end"
    )
    colluders: int = Field(
        1,
        ge=0,
        description="secure-sum: sites that may work with the server; a total is of two more at least",
    )
    unit: Literal["site", "image"] = Field(
        "site", description="what epsilon protects: all that a site holds, or one image (sums only)"
    )
    noise_multiplier: float = Field(
        0.0, ge=0, description="standard deviation of the noise over the clipping bound; 0: no noise"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="probability at which epsilon is stated")
    clip_norm: float = Field(
        0.0, ge=0, description="largest norm of a site's change of the head; 0: no limit"
    )
    clip_sums: float = Field(
        0.0, ge=0, description="largest norm of an image's centroid sums and counts per patch; 0: no limit"
    )
    clip_scatter: float = Field(
        0.0,
        ge=0,
        description="spectral: the same of its scatter, in units of feature-norm (usual: 0.25); 0: no limit",
    )
    feature_norm: float = Field(
        0.0,
        ge=0,
        description="spectral: features of a patch that are longer are shortened to it; 0: no limit",
    )
    minimum_count: int = Field(
        0,
        ge=0,
        description="a cluster with fewer patches at a site is sent as empty (with noise: in total); "
        "eval.where 'sites': so is a cell with fewer pixels",
    )

    minimum_images: int = Field(
        30,
        ge=0,
        description="a deployed site of fewer images sends no sums that the server sees plainly; in a simulation a "
        "warning; 0: any site does",
    )

    @property
    def totals_only(self) -> bool:
        """Whether the model comes from totals over the sites, not from a rule over single sites."""
        return self.secure_sum or self.noise_multiplier > 0
