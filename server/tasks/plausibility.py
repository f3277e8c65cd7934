"""Figures that no honest site can send, told from what the server knows: the model that it sent and the site's size.

Every check is a bound that holds for any images: what is refused is wrong, not unusual. What passes them can still be a
lie; `docs/faults.md` says how far such a lie reaches, and which rules stand it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common import wire
from common.clustering.spectral import LEAST_VARIANCE, symmetric
from common.losses.base import NamedArrays, sums_form
from common.settings.schema import RunConfig
from server.centroids.starts import neighbors
from server.states import ModelState, private_groups
from server.transport.reply_checks import Plausible, Sender

# Of a parameter, and of a running statistic: far above any that works, and sums of them stay finite.
MOST_WEIGHT, MOST_STATISTIC = 2.0**20, 2.0**40
# A round of steps leaves a model's length within this factor of what it was.
MOST_GROWTH = 2.0**10
# Adam's step is at most so many learning rates: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) = 7.27, by Cauchy-Schwarz.
MOST_OF_ADAM = 8.0
# Features are cached as float16.
MOST_FEATURE = 65504.0
# The second moment of a patch differs by less than this factor between sites of one backbone.
MOST_ENERGY = 16.0
# Of two sites nobody can say which one is odd.
FEWEST_TO_COMPARE = 3
# Relative rounding of a number on its way.
ROUNDING = {"float32": 2.0**-22, "float16": 2.0**-10}


def size_fault(update: wire.Update, sender: Sender, batch: int) -> str | None:
    """Compare the numbers of images and batches that a reply counts with the site's greeting."""
    images = update.facts.get("images")
    if images != sender.images:
        return f"its number of images is {images!r}, its greeting said {sender.images}; start the site again"
    batches = update.facts.get("batches")
    if batches is not None and batches != math.ceil(sender.images / batch):
        return f"its number of batches is {batches!r}, {sender.images} images make {math.ceil(sender.images / batch)}"
    return None


def model_fault(
    update: wire.Update, sent: Mapping[str, NamedArrays], reach: Mapping[str, float] | None = None
) -> str | None:
    """Compare what a site trained with what it was sent.

    ``reach`` says by group how far its steps can move a number, where that is known.
    """
    for group, arrays in update.groups.items():
        most = MOST_STATISTIC if group == "statistics" else MOST_WEIGHT
        for key, value in arrays.items():
            if value.dtype.kind == "f" and float(np.abs(value).max(initial=0.0)) > most:
                return f"'{group}/{key}' holds numbers above {most:g}"
        before = sent.get(group)
        if before is None or group == "statistics":
            continue
        old, new = (_length(arrays[key] for key in before) for arrays in (before, arrays))
        if old > 0 and not old / MOST_GROWTH <= new <= old * MOST_GROWTH:
            return f"'{group}' is {new / old:.3g} times as long as what was sent"
        steps = (reach or {}).get(group, math.inf)
        for key, value in before.items() if steps < math.inf else ():
            moved = np.abs(arrays[key].astype(np.float64) - value)
            if (moved > steps + ROUNDING["float16"] * 2 * np.abs(value)).any():
                return f"'{group}/{key}' moved further than its steps can reach"
    return None


def _length(arrays: Iterable[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays))


def counts_fault(group: str, counts: np.ndarray, sender: Sender, config: RunConfig) -> str | None:
    """Check that counts [S, K] of patches add up to those of the site's images; less, where small ones are hidden."""
    codes = 1 if config.things.each_picture == "one" else math.prod(sender.grid)
    everything, hides = sender.images * codes, config.privacy.minimum_count > 0
    for total in counts.sum(axis=1, dtype=np.float64):
        if total > everything or (total < everything and not hides):
            return f"'{group}/counts' add up to {total:.0f}, its images have {everything} codes"
    return None


def sums_fault(
    sums: NamedArrays, sender: Sender, centroids: NDArray[np.float64] | None, config: RunConfig
) -> str | None:
    """Compare sums of unit codes with their counts, and with the ``centroids`` [S, M, D] that they were taken under.

    A code belongs to the nearest centroid, so that a sum lies nearest to its own as well.
    """
    counts = sums["counts"].astype(np.float64)
    if fault := counts_fault(
        "sums", counts.reshape(1 if centroids is None else len(centroids), -1), sender, config
    ):
        return fault
    slack = 2 * ROUNDING[config.wire.dtype] * counts + 1e-9
    if (np.abs(sums["cosines"]) > counts + slack).any():
        return "'sums/cosines' are larger than as many cosines can be"
    if centroids is None:
        return None
    rows = sums["sums"].astype(np.float64).reshape(centroids.shape)
    lengths = np.linalg.norm(centroids, axis=2, keepdims=True)
    units = np.divide(centroids, lengths, out=np.zeros_like(centroids), where=lengths > 0)
    along = rows @ units.transpose(0, 2, 1)
    own = np.diagonal(along, axis1=1, axis2=2).reshape(-1)
    if (np.abs(own - sums["cosines"]) > 4 * slack).any():
        return "'sums/cosines' do not fit the sums"
    if (own + 4 * slack < along.max(axis=2).reshape(-1)).any():
        return "'sums/sums' lie nearer to another cluster than to their own"
    return None


def tables_fault(sums: NamedArrays, sender: Sender, groups: np.ndarray, config: RunConfig) -> str | None:
    """Compare the tables of several starts with their counts.

    ``groups`` [S, M] are the clusters that they are joined to. With ``privacy.minimum-count`` small cells are missing,
    so that only what is too much is refused.
    """
    starts, size = groups.shape
    kinds, hides = config.fitted_clusters, config.privacy.minimum_count > 0
    counts = sums["counts"].astype(np.float64).reshape(starts, size)
    shares = np.stack([np.bincount(groups[s], weights=counts[s], minlength=kinds) for s in range(starts)])

    codes = sender.images * (1 if config.things.each_picture == "one" else math.prod(sender.grid))
    if (sums["shares"] != shares).any() if not hides else (sums["shares"].sum(axis=1) > codes).any():
        return "'sums/shares' do not fit the counts"
    entropies = sums["entropies"]
    if (entropies < -1e-6).any() or (
        entropies > sender.images * math.log(max(kinds, 1)) * (1 + 1e-6) + 1e-6
    ).any():
        return "'sums/entropies' are no entropies of so many images"
    height, width = sender.grid
    pairs = sender.images * (height * (width - 1) + (height - 1) * width)
    pairs = 0 if config.things.each_picture == "one" else pairs
    beside = sums["adjacency"].astype(np.float64)
    found = beside.sum(axis=1)
    if (found > pairs).any() or ((found < pairs).any() and not hides):
        return f"'sums/adjacency' adds up to something else than {pairs} pairs of neighbors"
    tables = np.stack([neighbors(triangle, size) for triangle in beside])
    if not hides and (tables.sum(axis=2) > 4 * counts).any():
        return "'sums/adjacency' gives a patch more than four neighbors"
    overlaps = sums["overlaps"].astype(np.float64)
    if (overlaps.sum(axis=(2, 3)) > codes).any():
        return "'sums/overlaps' count more than there is"
    if not hides:
        family = overlaps.shape[1]
        others = shares.reshape(-1, family, kinds)[np.arange(starts) // family]
        if (overlaps.sum(axis=3) != shares[:, None]).any() or (overlaps.sum(axis=2) != others).any():
            return "'sums/overlaps' do not fit the shares"
    return None


def scatter_fault(kind: str, arrays: NamedArrays, sender: Sender, dtype: str) -> str | None:
    """Check means, correlations and differences of patches for what no patches have (see `PatchScatter.to_arrays`)."""
    count, weight = (float(value) for value in arrays["weights"])
    height, width = sender.grid
    pairs = sender.images * (height * (width - 1) + (height - 1) * width)
    if count != sender.images * height * width:
        return f"'{kind}/weights' counts {count:g} patches, its images have {sender.images * height * width}"
    if not 0 <= weight <= pairs * (1 + 1e-6):
        return f"'{kind}/weights' weighs pairs of patches by {weight:g}, there are {pairs}"
    if (np.abs(arrays["mean"]) > MOST_FEATURE).any():
        return f"'{kind}/mean' is larger than any feature"
    least = math.sqrt(LEAST_VARIANCE) * (1 - 2**-9)
    if (arrays["scale"] < least).any() or (arrays["scale"] > MOST_FEATURE).any():
        return f"'{kind}/scale' is no deviation of features"
    channels = len(arrays["mean"])
    rounding = ROUNDING["float32" if arrays["correlation"].dtype == np.float64 else dtype]
    correlation = symmetric(arrays["correlation"], channels)
    if (np.abs(correlation) > 1 + 4 * rounding).any() or not _is_psd(correlation, rounding):
        return f"'{kind}/correlation' is no matrix of correlations"
    if "difference" not in arrays:
        return None if weight == 0 else f"'{kind}/weights' weighs pairs that nobody asked for"
    difference = symmetric(arrays["difference"], channels)
    # a patch has four neighbors at most, and (a - b)^2 is at most 2 a^2 + 2 b^2
    if weight > 0 and (np.diag(difference) > 8 * count / weight * (1 + 4 * rounding)).any():
        return f"'{kind}/difference' is larger than patches can differ"
    if not _is_psd(difference, rounding):
        return f"'{kind}/difference' is no sum of squares"
    return None


def _is_psd(matrix: NDArray[np.float64], rounding: float) -> bool:
    """Tell whether a symmetric matrix is positive semi-definite but for rounding of its numbers."""
    diagonal = np.diag(matrix)
    slack = len(matrix) * rounding * max(float(np.abs(matrix).max(initial=0.0)), 1e-12)
    if diagonal.min(initial=0.0) < -slack:
        return False
    try:
        np.linalg.cholesky(matrix + slack * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def energy(arrays: NamedArrays) -> float:
    """Return the mean squared length of a patch's features, from means and deviations."""
    return sum(float(np.square(arrays[key].astype(np.float64)).sum()) for key in ("mean", "scale"))


def energy_fault(arrays: NamedArrays, usual: float) -> str | None:
    """Compare the length of a site's features with that of others, of which ``usual`` is the square."""
    ratio = energy(arrays) / max(usual, 1e-12)
    if 1 / MOST_ENERGY <= ratio <= MOST_ENERGY:
        return None
    return f"the norm of its features is {math.sqrt(ratio):.3g} times that of the other sites"


def outlying_scatters(sent: Mapping[str, NamedArrays]) -> dict[str, str]:
    """Return whose patches have features far from those of the other sites, of three or more, with the reason."""
    if len(sent) < FEWEST_TO_COMPARE:
        return {}
    middle = float(np.median([energy(arrays) for arrays in sent.values()]))
    found = {name: energy_fault(arrays, middle) for name, arrays in sent.items()}
    return {name: reason for name, reason in found.items() if reason}


def plausible_for(state: ModelState, config: RunConfig) -> Plausible:
    """Return what a reply to this state is compared with; nothing that a site keeps to itself is known."""
    apart = bool(private_groups(config)) or config.aggregation.keep_least_moved
    sent = {} if apart else {"head": state.head, "centroids": {"centroids": state.centroids}}
    stack = state.starts["centroids"] if state.starts else state.centroids[None]
    centroids = None if apart else stack.astype(np.float64)

    def fault(update: wire.Update, sender: Sender) -> str | None:
        found = size_fault(update, sender, config.local.batch)
        for kind, arrays in update.groups.items():
            if found is None and kind == "sums":
                found = sums_fault(arrays, sender, centroids, config)
                if found is None and state.starts:
                    found = tables_fault(arrays, sender, state.starts["groups"], config)
            elif found is None and kind == "centroids":
                found = counts_fault(kind, arrays["counts"][None], sender, config)
            elif found is None and sums_form(kind) is not None:
                found = scatter_fault(kind, arrays, sender, config.wire.dtype)
        if found is None and "head" in update.groups:
            steps = config.local.steps or config.local.epochs * math.ceil(sender.images / config.local.batch)
            found = model_fault(update, sent, {"head": MOST_OF_ADAM * config.local.lr * steps})
        return found

    return fault
