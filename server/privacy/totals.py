"""Rounds over totals: the server learns sums over sites, but no site's own numbers.

The total becomes the update of one site that holds everything (`common.privacy.packed_sums`): merge rules take it
like any other. With secure aggregation it comes from `secure_sum`; without, where sites only add noise, from
adding up. What has to be known beforehand (numbers of sites and images) is public.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common import wire
from common.losses.base import Shapes, clipping_bound, closed_form, sums_form
from common.privacy.packed_sums import PackedSums, packed_shapes, summed_groups, unpack, unpack_sums
from common.privacy.secure_masks import digits_of, fraction_bits, from_ring
from common.settings.schema import RunConfig
from server.privacy.noisy_totals import NoisyTotal, clean_groups
from server.privacy.secure_sum import Dispatch, SecureTotal, secure_total
from server.transport.exchange import Payload
from server.transport.registry import SiteInfo
from server.transport.reply_checks import ReplySchema

log = logging.getLogger(__name__)

TOTAL_NAME = "all sites"
"""The name under which a total goes through the merge rules."""

_LARGEST_WEIGHT = 2.0**10  # of a head's parameter: far above any that works
_LARGEST_METRIC = 2.0**20
_LEAST = 2.0**-40  # a bound that is not used
_MOST_EXPONENT = 100
_NOISE_REACH = 64.0  # standard deviations: never reached


def total_shapes(expectation: ReplySchema, config: RunConfig) -> Shapes:
    """Return the shapes of what sites send in the place of the groups that are expected otherwise."""
    groups = summed_groups(expectation.shapes)
    if not config.privacy.noise_multiplier:
        return packed_shapes(groups)
    shapes: Shapes = {}
    for group, arrays in groups.items():
        inner = dict(arrays)
        if group == "sums":
            inner.pop("cosines")  # a figure that no rule needs costs no noise
        if form := sums_form(group):
            inner = form.noisy_shapes(arrays)
        shapes |= {f"{group}/{key}": shape for key, shape in inner.items()}
    return shapes


def digits(sites: Mapping[str, SiteInfo], config: RunConfig, exponent: int = 0) -> dict[str, int]:
    """Return how many binary digits each kind of number gets in the ring, from what is public.

    No feature is larger than 2^``exponent`` in magnitude.
    """
    images = float(max(info.images for info in sites.values()))
    patches = images * max(info.grid[0] * info.grid[1] for info in sites.values())
    weight = 1.0 if config.aggregation.weights == "uniform" else images
    feature = 2.0**exponent
    largest = {
        "weight": weight,
        "metrics": weight * _LARGEST_METRIC,
        "head": weight * _LARGEST_WEIGHT,
        "shared": weight * _LARGEST_WEIGHT,
        "centroids": max(weight * _LARGEST_WEIGHT, patches),
        "sums": patches,
        "sums/adjacency": 4 * patches,  # two neighbors a patch, counted either way round
    }
    closed, privacy = closed_form(config), config.privacy
    if privacy.noise_multiplier:
        reach = _NOISE_REACH * privacy.noise_multiplier
        largest["head"] += reach * privacy.clip_norm
        largest["shared"] += reach * privacy.clip_norm
        largest["sums"] = (images + reach) * max(privacy.clip_sums, _LEAST)
        if closed is not None:
            largest[closed.kind] = (images + reach) * max(clipping_bound(config), _LEAST)
    elif closed is not None:
        largest |= {f"{closed.kind}/{name}": b for name, b in closed.largest(patches, feature).items()}
    rounding = 1 + 1e-6  # a sum of features that were rounded on their way
    return {kind: fraction_bits(bound * rounding, len(sites)) for kind, bound in largest.items()}


def largest_exponent(keys: Mapping[str, wire.Update]) -> int:
    """Return the power of two that no site's features exceed; raises ValueError for nonsense."""
    found = [update.facts.get("exponent") for update in keys.values()]
    if not all(isinstance(e, int) and abs(e) <= _MOST_EXPONENT for e in found):
        raise ValueError("a site does not say how large its features are")
    return max(int(str(exponent)) for exponent in found)


def total_round(
    letters: Mapping[str, Payload],
    action: str,
    post: Dispatch,
    expectation: ReplySchema,
    sites: Mapping[str, SiteInfo],
    config: RunConfig,
    *,
    run_key: str,
    round_number: int,
    label: str,
) -> tuple[wire.Update | None, dict[str, wire.Update]]:
    """Have the sites answer ``letters`` and return the update that stands for all of them, and who is in it.

    Returns None in the update's place where too few sites stayed, or where the total is nonsense.
    """
    shapes = total_shapes(expectation, config)
    length = sum(int(np.prod(shape)) for shape in shapes.values())
    asked = {name: sites[name] for name in letters}
    if config.privacy.secure_sum:
        closed = closed_form(config)  # whose sums are of features, of a size that only the sites know
        features = (
            closed is not None
            and any(key.startswith(f"{closed.kind}/") for key in shapes)
            and not config.privacy.noise_multiplier
        )
        found = secure_total(
            letters,
            action,
            post,
            length=length,
            bits=lambda keys: digits(asked, config, largest_exponent(keys) if features else 0),
            scale=features,
            session=f"{run_key}/{round_number}/{label}",
            label=label,
            quorum=config.privacy.quorum,
            weights_hash=expectation.weights_hash or "",
        )
        if found.vector is None:
            log.warning("no total in round %d: %s", round_number, found.reason)
            return None, {}
        totals = _decoded(found, shapes)
    else:
        expected = ReplySchema({"noisy": {"vector": (length,)}}, expectation.weights_hash)
        found = SecureTotal(None, dict(sorted(post(letters, action, expected).items())))
        if not found.replies:
            return None, {}
        vector = np.sum([u.groups["noisy"]["vector"] for u in found.replies.values()], axis=0)
        totals = unpack(np.asarray(vector, dtype=np.float64), shapes)
    try:
        return _as_update(totals, found, expectation, asked, config), found.replies
    except ValueError as error:
        log.warning("the total of round %d is of no use: %s", round_number, error)
        return None, {}


def _decoded(found: SecureTotal, shapes: Shapes) -> PackedSums:
    assert found.vector is not None
    totals: PackedSums = {}
    start = 0
    for key in sorted(shapes):
        size = int(np.prod(shapes[key]))
        part = from_ring(found.vector[start : start + size], digits_of(found.bits, key))
        totals[key] = part.reshape(shapes[key])
        start += size
    return totals


def _as_update(
    totals: PackedSums,
    found: SecureTotal,
    expectation: ReplySchema,
    asked: Mapping[str, SiteInfo],
    config: RunConfig,
) -> wire.Update:
    """Turn the total into an update; raises ValueError where no site can have sent such numbers."""
    replies = found.replies
    facts = {key: sum(int(u.facts.get(key, 0)) for u in replies.values()) for key in ("images", "batches")}
    total = wire.Update(TOTAL_NAME, expectation.weights_hash or "", facts=dict(facts))
    privacy = config.privacy
    if not privacy.noise_multiplier:
        means = unpack_sums(totals, len(replies))
        update = replace(total, groups=means.groups, metrics=means.metrics)
        shapes = summed_groups(expectation.shapes)
        fault = ReplySchema(shapes, expectation.weights_hash).fault(update)
        if fault:
            raise ValueError(fault)
        return update
    # each site adds the whole noise, or under secure summation what the fewest sites need to make it up: of those
    # that sent keys, as the sites themselves count
    parts = found.needed if privacy.secure_sum else 1
    height, width = next(iter(asked.values())).grid
    noisy = NoisyTotal(
        totals,
        sites=len(replies),
        images=facts["images"],
        patches=height * width,
        deviation=privacy.noise_multiplier * float(np.sqrt(len(replies) / parts)),
    )
    return replace(total, groups=clean_groups(noisy, config))
