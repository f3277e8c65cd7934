"""Which settings decide what the server and others may learn from what a site sends (see `docs/privacy.md`)?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.section import Section

if TYPE_CHECKING:
    from common.config import RunConfig


class Privacy(Section):
    """Secure summation, and clipping, noise and small counts."""

    secure_sum: bool = Field(
        False, description="the server sees totals over sites only; four messages a round instead of one"
    )
    quorum: float = Field(
        0.66, gt=0.5, le=1, description="secure-sum: share of a round's sites that have to stay to its end"
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

    @property
    def totals_only(self) -> bool:
        """Whether the model comes from totals over the sites, not from a rule over single sites."""
        return self.secure_sum or self.noise_multiplier > 0


def privacy_conflict(config: RunConfig) -> str | None:
    """Return why these settings do not go with the rest, in one sentence, or None."""
    privacy = config.privacy
    if not privacy.totals_only:
        return None
    why = "privacy.secure-sum" if privacy.secure_sum else "privacy.noise-multiplier"
    return _needs_single_sites(config, why) or (_not_covered(config) if privacy.noise_multiplier else None)


def _needs_single_sites(config: RunConfig, why: str) -> str | None:
    if config.task != "unsupervised":
        return f"{why} covers heads and centroid sums of task 'unsupervised', not task '{config.task}'; switch it off"
    if config.aggregation.rule != "mean":
        return (
            f"aggregation.rule '{config.aggregation.rule}' compares the heads of single sites, but with {why} the "
            "server knows their total only; use 'mean'"
        )
    if config.centroids.merge not in ("lloyd", "mean"):
        return (
            f"centroids.merge '{config.centroids.merge}' compares the centroids of single sites, but with {why} the "
            "server knows their total only; use 'lloyd'"
        )
    if config.centroids.share != "both":
        return (
            f"centroids.share is '{config.centroids.share}', for which the server keeps parts of single sites, but "
            f"with {why} it knows their total only; use 'both'"
        )
    if config.aggregation.keep_least_moved:
        return (
            f"aggregation.keep-least-moved picks a single site's model, but with {why} the server knows the total "
            "only; set it to false"
        )
    if config.sites.minimum < 2 and config.privacy.secure_sum and config.sites.expected == 1:
        return "sites.expected is 1, but privacy.secure-sum hides a site among others; it needs 2 or more"
    if config.privacy.secure_sum and config.sites.per_round == 1:
        return "sites.per-round is 1, but privacy.secure-sum hides a site among others; it needs 2 or more"
    return None


def _not_covered(config: RunConfig) -> str | None:
    """Name what would leave a site without noise, or with noise of no known meaning."""
    privacy, spectral = config.privacy, config.loss.objective == "spectral"
    if config.eval.where == "sites":
        return (
            "eval.where is 'sites', which sends confusion matrices without noise, but privacy.noise-multiplier is "
            f"{privacy.noise_multiplier:g}; use 'server' or 'none'"
        )
    if not spectral and privacy.unit == "image":
        return (
            f"privacy.unit is 'image', but the change of a head by loss.objective '{config.loss.objective}' is "
            "clipped for a site as a whole; use 'site', or objective 'spectral'"
        )
    if not spectral and config.aggregation.weights != "uniform":
        return (
            f"aggregation.weights is '{config.aggregation.weights}', but noise is measured for sites that weigh the "
            "same; use 'uniform'"
        )
    if config.centroids.merge != "lloyd":
        return f"centroids.merge '{config.centroids.merge}' sends centroids, for which there is no noise; use 'lloyd'"
    clipped = {"privacy.clip-sums": privacy.clip_sums}
    if spectral:
        clipped |= {
            "privacy.clip-scatter": privacy.clip_scatter,
            "privacy.feature-norm": privacy.feature_norm,
        }
    else:
        clipped |= {"privacy.clip-norm": privacy.clip_norm}
    missing = [key for key, bound in clipped.items() if not bound]
    if missing:
        return f"{missing[0]} is 0, but noise only hides what is clipped; give the bound a value"
    return None
