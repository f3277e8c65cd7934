"""Warns, without labels, where masks will or do follow the place in an image or the site rather than content.

Before training images are compared as they are: histograms of lightness, colorfulness and edges say whether a site
looks like any other, and the mean image how much of a site is the same at the same place. After training the maps
speak: the share of pixels that equal the most frequent cluster at their place, the share of the largest cluster, and
how much of their area two sites give to the same clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.images import Bytes, entry_image
from common.data.manifest import Shard
from common.errors import UserError

# images of a site that are looked at, evenly spaced; before training so many in all, where there are many sites
SAMPLE, _IN_ALL = 12, 96
# Similarity of a site to the nearest other one below which it is unlike all: three data sets 0.33 to 0.54, nine drives
# of one 0.83 and more, drawn scenes of other weather and colors 0.54 to 0.64
UNLIKE = 0.5
# Part of the variance of gray values that a site's mean image explains: drives 0.50 to 0.83, drawn scenes up to 0.92, a
# fixed camera more
STILL = 0.95
# Share of pixels that equal the most frequent cluster at their place over the other images of the site: drives that
# share a model 0.62 to 0.845, sites of three data sets under one model 0.88 and 0.97
FOLLOWS_PLACE = 0.87
# Share of a site's area in one cluster
EATEN = 0.9
# Part of their area that two sites give to the same clusters
SHARED = 0.25
# fewer images than this say nothing about places
FEWEST = 4

_LIGHT = np.linspace(0, 1, 9)
_COLORFUL = (0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.01)
_EDGES = (0, 0.004, 0.01, 0.02, 0.04, 0.08, 0.16, 2)
Maps = npt.NDArray[np.uint8]
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SiteWarning:
    """One finding: ``kind`` is for programs, ``text`` says what was found and what to do, of which ``sites``."""

    kind: str
    sites: tuple[str, ...]
    text: str
    figures: tuple[float, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {"kind": self.kind, "sites": self.sites, "text": self.text, "figures": self.figures}


def sample(count: int, wanted: int = SAMPLE) -> list[int]:
    """Return up to ``wanted`` indices spread evenly over ``count``."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, wanted))}) if count else []


def _edges(gray: Shares) -> Shares:
    found: Shares = np.hypot(np.diff(gray, axis=0)[:, :-1], np.diff(gray, axis=1)[:-1])
    return found


def _histograms(image: Bytes) -> list[Shares]:
    picture = Image.fromarray(image)
    small = np.asarray(picture.resize((128, 96), Image.Resampling.BOX), np.float64) / 255
    fine = np.asarray(picture.convert("L").resize((256, 192), Image.Resampling.BILINEAR), np.float64) / 255
    light, colorful = small.mean(axis=2), small.max(axis=2) - small.min(axis=2)
    parts = ((light, _LIGHT), (colorful, _COLORFUL), (_edges(fine), _EDGES), (_edges(light), _EDGES))
    counts = [np.histogram(values, bins)[0] for values, bins in parts]
    return [count / count.sum() for count in counts]


def similarity(first: Sequence[Shares], second: Sequence[Shares]) -> float:
    """Return the product of Bhattacharyya coefficients of histograms, 0 (nothing alike) to 1."""
    return float(np.prod([np.sqrt(a * b).sum() for a, b in zip(first, second, strict=True)]))


def stillness(gray: Shares) -> float:
    """Return which part of the variance of gray images [N, h, w] their mean image explains, corrected for N."""
    total = float(((gray - gray.mean()) ** 2).mean())
    left = float(((gray - gray.mean(axis=0)) ** 2).mean()) * len(gray) / max(1, len(gray) - 1)
    return 1 - left / total if total > 0 else 1.0


def warn_before(shards: Sequence[Shard]) -> list[SiteWarning]:
    """Compare the images of sites; unreadable ones are passed over. Costs about 0.05 s an image."""
    looks: dict[str, list[Shares]] = {}
    found: list[SiteWarning] = []
    for shard in shards:
        each, gray = [], []
        for index in sample(len(shard), max(FEWEST, min(SAMPLE, _IN_ALL // len(shards)))):
            try:
                image = entry_image(shard, index)
            except UserError:
                continue  # said elsewhere
            each.append(_histograms(image))
            tiny = Image.fromarray(image).convert("L").resize((32, 24), Image.Resampling.BOX)
            gray.append(np.asarray(tiny, np.float64) / 255)
        if not each:
            continue
        looks[shard.name] = [np.mean([part[i] for part in each], axis=0) for i in range(len(each[0]))]
        still = stillness(np.stack(gray))
        if len(gray) >= FEWEST and still >= STILL:
            found.append(
                SiteWarning(
                    "still",
                    (shard.name,),
                    f"{shard.name} shows nearly the same at the same place in all images ({100 * still:.0f} % of their "
                    "variance is the mean image): masks may follow the place; take images that differ more.",
                    (round(still, 4),),
                )
            )
    return [*_unlike(looks), *found]


def _unlike(looks: Mapping[str, list[Shares]]) -> list[SiteWarning]:
    """Return one warning about all sites that look like no other."""
    nearest = {
        name: max(similarity(own, other) for place, other in looks.items() if place != name)
        for name, own in looks.items()
        if len(looks) > 1
    }
    far = [name for name, value in nearest.items() if value < UNLIKE]
    if not far:
        return []
    figures = ", ".join(f"{name} {nearest[name]:.2f}" for name in far)
    return [
        SiteWarning(
            "unlike",
            tuple(far),
            f"{', '.join(far)} look{'s' if len(far) == 1 else ''} like no other site (similarity to the nearest, below "
            f"{UNLIKE}: {figures}): clusters may tell sites apart, not things in them; train such sites alone "
            "(centroids.share = 'none'), or raise model.clusters.",
            tuple(round(nearest[name], 4) for name in far),
        )
    ]


def place_share(maps: Maps, clusters: int) -> float:
    """Return the share of pixels of maps [N, h, w] that equal the most frequent cluster there in the other images."""
    counts = np.stack([(maps == cluster).sum(axis=0) for cluster in range(clusters)])
    own = np.take_along_axis(counts[None], maps[:, None].astype(np.int64), axis=1)[:, 0]
    others = counts[None].repeat(len(maps), axis=0)
    np.put_along_axis(others, maps[:, None].astype(np.int64), own[:, None] - 1, axis=1)
    return float((others.argmax(axis=1) == maps).mean())


def shares_of(maps: Maps, clusters: int) -> Shares:
    """Return which part of the area of maps [N, h, w] each cluster has, [K]."""
    return np.bincount(maps.ravel(), minlength=clusters)[:clusters] / maps.size


def warn_after(maps: Mapping[str, Maps], clusters: int) -> list[SiteWarning]:
    """Judge the maps uint8 [N, h, w] of each site's images under one model of K clusters."""
    found = []
    shares = {name: shares_of(own, clusters) for name, own in maps.items()}
    for name, own in maps.items():
        largest, place = float(shares[name].max()), place_share(own, clusters)
        if largest >= EATEN:
            found.append(
                SiteWarning(
                    "eaten",
                    (name,),
                    f"cluster {int(shares[name].argmax())} has {100 * largest:.0f} % of the area of {name}: nothing is "
                    "told apart there; raise model.clusters, or train this site alone.",
                    (round(largest, 4),),
                )
            )
        elif len(own) >= FEWEST and place >= FOLLOWS_PLACE:
            found.append(
                SiteWarning(
                    "place",
                    (name,),
                    f"{100 * place:.0f} % of the pixels of {name} have the cluster that is most frequent at their "
                    "place: masks follow the place, not what is seen; try another backbone (model.backbone), or "
                    "another size (model.height, model.width).",
                    (round(place, 4),),
                )
            )
    overlap = {
        name: max(float(np.minimum(own, shares[other]).sum()) for other in shares if other != name)
        for name, own in shares.items()
        if len(shares) > 1
    }
    apart = [name for name, value in overlap.items() if value < SHARED]
    if apart:
        figures = ", ".join(f"{name} {100 * overlap[name]:.0f} %" for name in apart)
        found.append(
            SiteWarning(
                "apart",
                tuple(apart),
                f"{', '.join(apart)} share{'s' if len(apart) == 1 else ''} hardly a cluster with any other site (area "
                f"in common with the nearest: {figures}): clusters tell sites apart; train such sites alone "
                "(centroids.share = 'none'), or raise model.clusters.",
                tuple(round(overlap[name], 4) for name in apart),
            )
        )
    return found
