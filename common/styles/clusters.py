"""Style clusters: groups of sites that look alike, and the group nearest to a new site or an image.

k-means over flattened styles, for a range of numbers of clusters and from many starts each; the best
silhouette decides (Rousseeuw, 1987), and of equals the smallest number. Styles stay as they are, unscaled:
the sum over all pixels outweighs everything else, so that groups are groups of brightness first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from threadpoolctl import threadpool_limits

from common.errors import UserError
from common.order import natural_key
from common.seeds import derive
from common.settings.network import Clusters

_Doubles = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

log = logging.getLogger(__name__)

# Of a run directory: a `ClustersRecord`.
CLUSTERS_FILE = "clusters.json"
# Silhouettes closer than this are equal: the difference is rounding.
_TIE = 1e-9
# runs of k-means for each number of clusters: styles are few and short, so that these cost nothing
_STARTS = 10
_SITE = "site/"  # keeps names of sites apart from the other arrays


class ClustersRecord(BaseModel):
    """What ``clusters.json`` says: names of each cluster's sites, mean silhouette of each number that was tried.

    ``purity`` is the share of sites in the main domain of their cluster, where domains are known.
    """

    k: int = 0
    clusters: list[list[str]]
    silhouettes: dict[int, float] = {}
    note: str = ""
    purity: float | None = None


@dataclass(frozen=True)
class StyleClusters:
    """Groups of sites.

    Attributes:
        centres: mean style of each cluster, float64 [k, d]. Clusters are numbered in the order in which
            their first site, by name, appears.
        assignment: cluster of each site.
        silhouettes: mean silhouette of each number of clusters that was tried.
        note: a sentence where the number was not chosen by silhouettes, else empty.
    """

    centres: _Doubles
    assignment: dict[str, int]
    silhouettes: dict[int, float] = field(default_factory=dict)
    note: str = ""

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    def nearest(self, style: npt.NDArray[np.floating]) -> int:
        """Return the cluster whose centre is nearest (Euclidean) to a style; the lower one of equals."""
        point = _flat(style)
        if point.shape != self.centres.shape[1:]:
            raise ValueError(
                f"A style of {point.size} numbers cannot be compared with centres of {self.centres.shape[1]}; "
                "take it at the size and window of the clusters."
            )
        return int(_nearest(point[None], self.centres)[0])

    def members(self) -> list[list[str]]:
        """Return the sites of each cluster, by name."""
        return [
            sorted((s for s, own in self.assignment.items() if own == k), key=natural_key)
            for k in range(self.k)
        ]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays for a checkpoint: no pickle, no version of a library."""
        arrays: dict[str, np.ndarray] = {
            "centres": self.centres,
            "silhouettes": np.array(sorted(self.silhouettes.items()), dtype=np.float64).reshape(-1, 2),
            "note": np.frombuffer(self.note.encode(), dtype=np.uint8).copy(),
        }
        return arrays | {_SITE + s: np.array([own], dtype=np.int64) for s, own in self.assignment.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> StyleClusters:
        """Undo `to_arrays`; raises ValueError where the arrays do not belong together."""
        try:
            centres = np.asarray(arrays["centres"], dtype=np.float64)
            scores = {int(count): float(score) for count, score in arrays["silhouettes"]}
            note = arrays["note"].tobytes().decode()
            sites = [name.removeprefix(_SITE) for name in sorted(arrays) if name.startswith(_SITE)]
            assignment = {site: int(arrays[_SITE + site][0]) for site in sites}
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"These arrays are no clusters of styles ({error!r}).") from None
        if centres.ndim != 2 or not all(0 <= own < len(centres) for own in assignment.values()):
            raise ValueError(f"{list(centres.shape)} centres do not fit the clusters that sites are in.")
        return cls(centres, assignment, scores, note)

    def record(self) -> ClustersRecord:
        """Return what a report shows: all but the centres."""
        tried = dict(sorted(self.silhouettes.items()))
        return ClustersRecord(k=self.k, clusters=self.members(), silhouettes=tried, note=self.note)


def cluster_styles(styles: Mapping[str, np.ndarray], clusters: Clusters, seed: int) -> StyleClusters:
    """Group sites by style.

    Tries ``smallest`` to min(``largest``, sites - 1) clusters, the range in which a silhouette exists, and
    never more than there are different styles; ``exact`` forces a number. Two sites, or sites of one
    style, become one cluster, and the note says so. The result does not depend on the order of sites.

    Args:
        styles: arrays of one shape, by site.
        clusters: section ``clusters``.
        seed: of the run.

    Raises:
        UserError: no styles, styles of different shapes or with NaN or infinity, fewer sites or fewer
            different styles than clusters.
    """
    sites = sorted(styles)
    points = _stack(styles, sites)
    count, different = len(points), len(np.unique(points, axis=0))
    if clusters.exact:
        if different < clusters.exact:
            raise UserError(
                f"clusters.exact is {clusters.exact}, but {_amount(count, 'site')} sent "
                f"{_amount(different, 'different style')}; expected at least {clusters.exact}, so lower "
                "clusters.exact or set it to 0."
            )
        labels = _group(points, clusters.exact, _STARTS, seed)
        scores = {clusters.exact: silhouette(points, labels)} if 1 < clusters.exact < count else {}
        return _result(sites, points, labels, scores, "The number of clusters was set, not searched for.")
    if clusters.smallest > max(2, count - 1):
        raise UserError(
            f"clusters.smallest is {clusters.smallest}, but {_amount(count, 'site')} sent a style; expected "
            "more sites than clusters, so lower clusters.smallest or set clusters.exact."
        )
    if count < 3 or different == 1:
        why = "too few to be compared" if count < 3 else "all of the same style"
        note = f"{_amount(count, 'site')}, {why}: one cluster."
        log.warning("%s", note)
        return _result(sites, points, np.zeros(count, dtype=np.int64), {}, note)
    return _search(sites, points, different, clusters, seed)


def _search(
    sites: list[str], points: _Doubles, different: int, clusters: Clusters, seed: int
) -> StyleClusters:
    smallest, largest = clusters.smallest, min(clusters.largest, len(points) - 1, different)
    note = ""
    if largest < smallest:
        smallest = largest
        note = f"{_amount(different, 'different style')}: no more clusters than that."
        log.warning("%s", note)
    scores: dict[int, float] = {}
    best, labels_of_best = -2.0, np.zeros(len(points), dtype=np.int64)
    for number in range(smallest, largest + 1):
        labels = _group(points, number, _STARTS, seed)
        scores[number] = silhouette(points, labels)
        if scores[number] > best + _TIE:
            best, labels_of_best = scores[number], labels
    return _result(sites, points, labels_of_best, scores, note)


def silhouette(points: _Doubles, labels: _Ints) -> float:
    """Return the mean silhouette of [n, d] points in 2 to n - 1 clusters (Euclidean; 0 for a lone point)."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels))


def purity(assignment: Mapping[str, int], domains: Mapping[str, str]) -> float:
    """Return the share of sites whose domain is the most frequent one of their cluster.

    Raises ValueError for no sites, or one whose domain is not known.
    """
    unknown = sorted(set(assignment) - set(domains))
    if unknown or not assignment:
        raise ValueError(f"The domains of {unknown or 'no sites'} were asked for; name each site's domain.")
    right = 0
    for cluster in set(assignment.values()):
        own = [domains[site] for site, number in assignment.items() if number == cluster]
        right += max(own.count(domain) for domain in set(own))
    return right / len(assignment)


def _flat(style: npt.NDArray[np.floating]) -> _Doubles:
    # float32 amplitudes of 1e8 would lose the small ones in squared distances
    return np.asarray(style, dtype=np.float64).reshape(-1)


def _stack(styles: Mapping[str, np.ndarray], sites: list[str]) -> _Doubles:
    if not sites:
        raise UserError("No site sent a style; expected at least one, so see why sites did not answer.")
    for site in sites:
        if styles[site].shape != styles[sites[0]].shape or not np.isfinite(styles[site]).all():
            raise UserError(
                f"The style of site {site} has shape {list(styles[site].shape)} or holds NaN or infinity; "
                f"expected finite numbers of shape {list(styles[sites[0]].shape)}, so take it with the "
                "federation's settings."
            )
    return np.stack([_flat(styles[site]) for site in sites])


def _group(points: _Doubles, number: int, starts: int, seed: int) -> _Ints:
    """Return the cluster of each point: sklearn's k-means, best of many starts, run until nothing moves."""
    from sklearn.cluster import KMeans

    state = derive(seed, "style-clusters", number) % 2**32
    with threadpool_limits(limits=1):  # one order of sums, so that a seed gives one result
        fitted = KMeans(number, n_init=starts, tol=0, random_state=state).fit(points)
    return np.asarray(fitted.labels_, dtype=np.int64)


def _nearest(points: _Doubles, centres: _Doubles) -> _Ints:
    distances: _Doubles = np.square(points[:, None] - centres[None]).sum(axis=2)
    return np.asarray(distances.argmin(axis=1), dtype=np.int64)


def _result(
    sites: list[str], points: _Doubles, labels: _Ints, scores: dict[int, float], note: str
) -> StyleClusters:
    """Number the clusters by their first site, whatever k-means called them."""
    _, first = np.unique(labels, return_index=True)
    centres = np.stack([points[labels == labels[i]].mean(axis=0) for i in sorted(first)])
    owners = _nearest(points, centres)
    assignment = {site: int(owner) for site, owner in zip(sites, owners, strict=True)}
    return StyleClusters(centres, assignment, scores, note)


def _amount(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
