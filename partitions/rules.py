"""Rules that divide images over sites.

Pure functions: they take what is known about the images and return, for every site, the indices of
its images in ascending order. All are deterministic; draws follow from the seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.seeds import numpy_generator


def drawn_view(seed: int, image: str, number: int) -> str:
    """Return the view of a random crop, a text that manifests know: it follows from seed, image and its number."""
    down, across = numpy_generator(seed, "crop", image, number).random(2)
    return f"at-{down:.4f}-{across:.4f}"


DIVISIONS = {
    "domain": "every site is one domain (camera, place, drive); grouped or split if --sites says so",
    "lists": "every site is one client of the data set's own lists, where it has such",
    "iid": "images are dealt out at random: the easy case, for comparison",
    "dirichlet": "skewed at random: class (or domain) shares per site drawn from Dirichlet(alpha)",
}
_Sites = list[list[int]]


def check_sites(sites: int, images: int) -> None:
    """Raise `UserError` unless every site can get an image."""
    if sites < 1:
        raise UserError(f"--sites is {sites}; expected at least 1.")
    if sites > images:
        raise UserError(
            f"--sites is {sites} but there are only {images} images; ask for at most {images} sites, as "
            "every site needs an image."
        )


def iid(images: int, sites: int, seed: int) -> _Sites:
    """Deal images out at random; sizes differ by at most one."""
    check_sites(sites, images)
    # a stream of its own: draws of other rules do not move it
    order = numpy_generator(seed, "partition", "iid").permutation(images)
    return [sorted(part.tolist()) for part in np.array_split(order, sites)]


def by_domain(domains: Sequence[str], sites: int | None = None) -> _Sites:
    """Give every domain a site, in order of first appearance.

    Fewer sites than domains: neighbouring domains share a site, equally many each. More: the domain
    with the most images per site is cut into one more contiguous piece, again and again.
    """
    members: dict[str, list[int]] = {}
    for index, domain in enumerate(domains):
        members.setdefault(domain, []).append(index)
    groups = list(members.values())
    wanted = len(groups) if sites is None else sites
    check_sites(wanted, len(domains))
    if wanted <= len(groups):
        return [
            sorted(i for g in part for i in groups[g])
            for part in np.array_split(np.arange(len(groups)), wanted)
        ]
    pieces = [1] * len(groups)
    for _ in range(wanted - len(groups)):  # one piece more each time; of equal domains the first
        largest = max(range(len(groups)), key=lambda g: (len(groups[g]) / pieces[g], -g))
        pieces[largest] += 1
    return [
        part.tolist()
        for group, count in zip(groups, pieces, strict=True)
        for part in np.array_split(np.asarray(group), count)
    ]


def characteristic_class(histograms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return int64 [N]: the class that stands out most in an image against the data set's mean.

    ``histograms`` [N, C] counts labelled pixels. Standing out is the Pearson residual, (share -
    mean) / sqrt(mean), which weighs common and rare classes fairly. The commonest class would not
    do: on street scenes it is the road in nearly every image, and a skew over it would be none.
    """
    shares = histograms / np.maximum(histograms.sum(axis=1, keepdims=True), 1)
    mean = shares.mean(axis=0)
    residual = (shares - mean) / np.sqrt(np.maximum(mean, 1e-12))  # else 0 / 0 for a class that no image has
    return np.asarray(residual.argmax(axis=1), dtype=np.int64)


def dirichlet(groups: Sequence[int | str], sites: int, alpha: float, seed: int) -> _Sites:
    """Split every group of images over the sites in shares drawn from Dirichlet(alpha, ..., alpha).

    ``groups`` names the group (class or domain) of each image. Small alpha: a group sits on few
    sites; large alpha: nearly iid. Counts are rounded by largest remainder; a site that got nothing
    takes one image of the then largest site.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UserError(
            f"--alpha is {alpha}; expected a number above 0 (0.1 is strong skew, 100 is nearly none)."
        )
    check_sites(sites, len(groups))
    members: dict[int | str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    result: _Sites = [[] for _ in range(sites)]
    for group, indices in sorted(members.items(), key=lambda item: str(item[0])):
        rng = numpy_generator(seed, "partition", "dirichlet", str(group))
        exact = rng.dirichlet(np.full(sites, alpha)) * len(indices)
        counts = np.floor(exact).astype(np.int64)
        rest = len(indices) - int(counts.sum())
        # largest remainders first; a stable sort gives equal ones to the earlier site on every machine
        counts[np.argsort(-(exact - counts), kind="stable")[:rest]] += 1
        order = rng.permutation(np.asarray(indices))
        for site, part in enumerate(np.split(order, np.cumsum(counts)[:-1])):
            result[site].extend(part.tolist())
    rng = numpy_generator(seed, "partition", "dirichlet", "repair")
    for empty in result:
        if not empty:
            largest = max(result, key=len)
            empty.append(largest.pop(int(rng.integers(len(largest)))))
    return [sorted(site) for site in result]
