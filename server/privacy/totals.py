"""Rounds over totals: the server learns sums over sites, but no site's own numbers.

The total becomes the update of one site that holds everything (`common.privacy.packed_sums`): merge rules take it
like any other. With secure aggregation it comes from `secure_sum`; without, where sites only add noise, from
adding up. What has to be known beforehand (numbers of sites and images) is public.

Totals with noise are cleaned so that rules can use them. Nothing here looks at data again: whatever is done to a
private total leaves it as private as it was. Negative counts, and sums longer than their counts, are noise by their
very form; they are cut off at the level that noise alone reaches. A closed form does the same to its own sums
(`ClosedForm.denoise`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import wire
from common.losses.base import Shapes, clipping_bound, closed_form, sums_form
from common.order import natural_key
from common.privacy.packed_sums import PackedSums, packed_shapes, summed_groups, unpack, unpack_sums
from common.settings.privacy import Privacy
from common.settings.schema import RunConfig
from server.privacy.accountant import releases_of, spend
from server.privacy.secure_sum import Post, SecureTotal, digits, largest_exponent, secure_total
from server.transport.exchange import Exchange, Payload, Replies
from server.transport.registry import SiteInfo
from server.transport.reply_checks import ReplySchema

log = logging.getLogger(__name__)

# The name under which a total goes through the merge rules.
TOTAL_NAME = "all sites"


def warn_of_few_images(config: RunConfig, images: Mapping[str, int]) -> None:
    """Warn of sites whose plain sums tell of single images; ``images`` counts those of every site, by name."""
    least, facts = config.privacy.minimum_images, config.loss.facts
    small = [name for name in sorted(images, key=natural_key) if images[name] < least]
    plain = config.facts.frozen_backbone and not config.privacy.totals_only
    if small and plain and (not facts.steps or config.centroids.polish_passes):
        log.warning(
            "%d of %d sites hold fewer than %d images (%s): a deployed site would refuse plain sums; see "
            "privacy.secure-sum",
            len(small),
            len(images),
            least,
            ", ".join(small),
        )


def exchange_totals(
    exchange: Exchange,
    payloads: Mapping[str, Payload],
    action: str,
    number: int,
    schema: ReplySchema,
    *,
    phase: str,
    label: str,
    run_dir: Path,
) -> Replies:
    """Ask sites for numbers of which the server sees the sum; ``total`` is the update that stands for all of them.

    There is no total where too few sites stayed, or where it is nonsense.

    Args:
        schema: how the reply of one site would have to look.
        phase: what the sites do, for the privacy accountant: it is charged before anything is sent.
        label: tells this total from the others of the round.
    """
    account, config = Replies(), exchange.config
    if config.privacy.noise_multiplier:
        spend(run_dir, list(payloads), releases_of(phase))

    def post(letters: Mapping[str, Payload], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        found = exchange(letters, action, number, expectation)
        account.add_account(found)
        return found.updates

    total, stayed = total_round(exchange, post, payloads, action, number, schema, label)
    if total is not None:
        account.total = total
        account.updates = {
            name: replace(reply, groups={}, metrics=dict(total.metrics)) for name, reply in stayed.items()
        }
    for name in stayed:
        account.quarantined.pop(name, None)  # lost after its numbers were in: it is part of the total
    return account


def total_round(
    exchange: Exchange,
    post: Post,
    letters: Mapping[str, Payload],
    action: str,
    number: int,
    expectation: ReplySchema,
    label: str,
) -> tuple[wire.Update | None, dict[str, wire.Update]]:
    """Have the sites answer ``letters`` and return the update that stands for all of them, and who is in it.

    Returns None in the update's place where too few sites stayed, or where the total is nonsense.
    """
    config = exchange.config
    shapes = total_shapes(expectation, config)
    length = sum(int(np.prod(shape)) for shape in shapes.values())
    asked = {name: exchange.registry.sites[name] for name in letters}
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
            session=f"{exchange.run_key}/{number}/{label}",
            label=label,
            quorum=config.privacy.quorum,
            weights_hash=expectation.weights_hash or "",
        )
        if found.vector is None:
            log.warning("no total in round %d: %s", number, found.reason)
            return None, {}
        totals = found.decoded(shapes)
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
        log.warning("the total of round %d is of no use: %s", number, error)
        return None, {}


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


@dataclass(frozen=True)
class NoisyTotal:
    """Totals by ``group/key`` over ``sites`` sites with ``images`` images of ``patches`` patches.

    ``deviation`` is the noise on every number in units of the clipping bound of its group.
    """

    totals: PackedSums
    sites: int
    images: int
    patches: int
    deviation: float

    def group(self, name: str) -> PackedSums:
        """Return the arrays of one group."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.totals.items() if k.startswith(prefix)}

    def units(self, privacy: Privacy) -> int:
        """Return how many vectors of bounded length were added up: images, or one mean per site."""
        return self.images if privacy.unit == "image" else self.sites


def clean_groups(noisy: NoisyTotal, config: RunConfig) -> wire.Groups:
    """Return the groups of the update that stands for all sites."""
    privacy, closed = config.privacy, closed_form(config)
    groups: wire.Groups = {}
    for name in ("head", "shared"):
        if arrays := noisy.group(name):
            groups[name] = {key: (value / noisy.sites).astype(np.float32) for key, value in arrays.items()}
    if sums := noisy.group("sums"):
        scale = noisy.patches * noisy.images / noisy.units(privacy)  # back to numbers of patches
        deviation = noisy.deviation * privacy.clip_sums * scale
        groups["sums"] = clean_sums(
            scale * sums["sums"], scale * sums["counts"], deviation, privacy.minimum_count
        )
    if closed is not None and (sums := noisy.group(closed.kind)):
        patches, deviation = noisy.images * noisy.patches, noisy.deviation * clipping_bound(config)
        groups[closed.kind] = closed.denoise(sums, noisy.units(privacy), patches, deviation)
    return groups


def clean_sums(
    sums: NDArray[np.float64], counts: NDArray[np.float64], deviation: float, minimum: float
) -> dict[str, np.ndarray]:
    """Return sums [K, D] and counts [K] in which clusters that noise alone could have made are empty.

    A vector of D normal numbers is longer than sqrt(D) + 2 standard deviations in less than 3 % of cases.
    Counts are raised to the length of their sum, below which no count can be.
    """
    lengths = np.linalg.norm(sums, axis=1)
    # at least one patch: below, a direction would be noise
    heard = (lengths > deviation * (np.sqrt(sums.shape[1]) + 2)) & (counts >= max(minimum, 1))
    return {
        "sums": np.where(heard[:, None], sums, 0.0),
        "counts": np.where(heard, np.maximum(counts, lengths), 0.0),
    }


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
        # a hostile site can spoil a total; nonsense must not reach the model
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
