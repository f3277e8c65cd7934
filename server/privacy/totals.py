"""Rounds over totals: the server learns sums over sites, but no site's own numbers.

The total becomes the update of one site that holds everything (`common.privacy.packed_sums`): merge rules take it
like any other. With secure aggregation it comes from `secure_sum`; without, where sites only add noise, from
adding up. What has to be known beforehand (numbers of sites and images) is public.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import wire
from common.losses.base import Shapes, closed_form, sums_form
from common.order import natural_key
from common.privacy.binding import session_of
from common.privacy.packed_sums import PackedSums, packed_shapes, summed_groups, unpack, unpack_sums
from common.privacy.secure_masks import fewest_together
from common.settings.schema import RunConfig
from server.privacy.accountant import releases_of, spend
from server.privacy.denoising import NoisyTotal, clean_groups
from server.privacy.group_search import GroupSum, Suspects, sound_sums
from server.privacy.number_range import beyond_range, digits, largest_numbers
from server.privacy.secure_sum import Post, SecureSum
from server.privacy.unmasking import Refuse
from server.transport.exchange import Exchange, Payload, Replies
from server.transport.reply_checks import ReplySchema, Sender, sanitize

log = logging.getLogger(__name__)

# The name under which a total goes through the merge rules.
TOTAL_NAME = "all sites"
# Groups that come with the number of a site's images.
_COUNTED = frozenset({"masked", "noisy"})


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
    suspects: Suspects | None = None,
) -> Replies:
    """Ask sites for numbers of which the server sees the sum; ``total`` is the update that stands for all of them.

    There is no total where too few sites stayed, or where it is nonsense.

    Args:
        schema: how the reply of one site would have to look.
        phase: what the sites do, for the privacy accountant: it is charged before anything is sent.
        label: tells this total from the others of the round.
        suspects: what earlier rounds found out about sites whose numbers spoil sums.
    """
    account, config = Replies(), exchange.config
    suspects = Suspects() if suspects is None else suspects

    def refuse(name: str, reason: str) -> None:
        account.quarantined[name] = sanitize(reason)
        account.refused.add(name)
        log.warning("site %s is left out: %s", name, account.quarantined[name])

    def post(letters: Mapping[str, Payload], action: str, expectation: ReplySchema) -> dict[str, wire.Update]:
        found = exchange(letters, action, number, expectation)
        account.add_account(found)
        for name, update in list(found.updates.items()):
            fault = _strange_facts(exchange, name, update) if _COUNTED & update.groups.keys() else None
            if fault:
                refuse(name, fault)
                del found.updates[name]
        return found.updates

    def ask(names: Sequence[str], attempt: int) -> GroupSum:
        if config.privacy.noise_multiplier:
            by_node = exchange.link.registered_keys()
            keys = {name: by_node.get(exchange.registry.sites[name].node_id, "") for name in names}
            spend(run_dir, names, releases_of(phase), keys)
        letters = {name: payloads[name] for name in names}
        told = f"{label}.{attempt}" if attempt else label
        return RoundSum(exchange, post, refuse, action, number, schema, told).ask(letters)

    for name in sorted(payloads.keys() & suspects.barred.keys()):
        refuse(name, suspects.barred[name])
    names = sorted(payloads.keys() - suspects.barred.keys())
    if not names:
        return account
    privacy = config.privacy
    # without masks every site's numbers were looked at one by one
    fewest = fewest_together(privacy.colluders) if privacy.secure_sum else len(names) + 1
    seed = f"{exchange.run_key}/{number}/{label}"
    found = sound_sums(ask, names, fewest, seed, trusting=privacy.colluders == 0)
    for part in found.bad:
        for name in part:
            refuse(
                name,
                f"one of {len(part)} sites spoils their sum" if part[1:] else "its numbers spoil the sum",
            )
            if part[1:]:
                account.refused.discard(name)  # most of them are honest
    suspects.narrow(found.bad)
    stayed = {name: reply for group in found.good for name, reply in group.replies.items()}
    if stayed:
        account.total = _as_update(found.good, schema, exchange)
        account.updates = {
            name: replace(reply, groups={}, metrics=dict(account.total.metrics))
            for name, reply in sorted(stayed.items())
        }
    for name in stayed.keys() - account.refused:
        account.quarantined.pop(name, None)  # lost after its numbers were in: it is part of the total
    return account


def _strange_facts(exchange: Exchange, name: str, update: wire.Update) -> str | None:
    """Return which count beside a site's numbers is not that of its greeting, or None."""
    images = exchange.registry.sites[name].images
    batches = -(-images // exchange.config.local.batch)
    for key, expected in (("images", images), ("batches", batches)):
        if update.facts.get(key, expected) != expected:
            return f"its number of {key} is not that of its greeting"
    return None


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


@dataclass(frozen=True)
class RoundSum:
    """The sum over some sites of a round, by masks or, where sites only add noise, by adding up."""

    exchange: Exchange
    post: Post
    refuse: Refuse
    action: str
    number: int
    expectation: ReplySchema
    label: str

    def ask(self, letters: Mapping[str, Payload]) -> GroupSum:
        """Have the sites answer their letters."""
        shapes = total_shapes(self.expectation, self.exchange.config)
        length = sum(int(np.prod(shape)) for shape in shapes.values())
        if self.exchange.config.privacy.secure_sum:
            found = self._masked(letters, shapes, length)
        else:
            expected = ReplySchema({"noisy": {"vector": (length,)}}, self.expectation.weights_hash)
            asked = {name: self.exchange.registry.sites[name] for name in letters}
            largest = largest_numbers(asked, self.exchange.config)
            replies = dict(sorted(self.post(letters, self.action, expected).items()))
            for name, reply in list(replies.items()):
                own = unpack(reply.groups["noisy"]["vector"].astype(np.float64), shapes)
                if fault := beyond_range(own, largest, 1):
                    self.refuse(name, fault)
                    del replies[name]
            if not replies:
                return GroupSum(None)
            vector = np.sum([u.groups["noisy"]["vector"] for u in replies.values()], axis=0)
            found = GroupSum(unpack(np.asarray(vector, dtype=np.float64), shapes), replies)
        if found.totals is None or self.exchange.config.privacy.noise_multiplier:
            return found
        try:
            _as_update([found], self.expectation, self.exchange)
        except ValueError as error:
            log.warning("the total of round %d is of no use: %s", self.number, error)
            return replace(found, totals=None, spoiled=True)
        return found

    def _masked(self, letters: Mapping[str, Payload], shapes: Shapes, length: int) -> GroupSum:
        exchange, config = self.exchange, self.exchange.config
        asked = {name: exchange.registry.sites[name] for name in letters}
        closed = closed_form(config)  # whose sums are of features, of a size that only the sites know
        features = (
            closed is not None
            and any(key.startswith(f"{closed.kind}/") for key in shapes)
            and not config.privacy.noise_multiplier
        )
        found = SecureSum(
            self.post,
            length,
            bits=lambda exponent: digits(largest_numbers(asked, config, exponent), len(asked)),
            session=session_of(exchange.run_key, self.number, self.label),
            label=self.label,
            quorum=config.privacy.quorum,
            colluders=config.privacy.colluders,
            scale=features,
            weights_hash=self.expectation.weights_hash or "",
            refuse=self.refuse,
        ).total(letters, self.action)
        if found.vector is None:
            log.warning("no total in round %d: %s", self.number, found.reason)
            return GroupSum(None, blamed=frozenset(found.blamed))
        totals = found.decoded(shapes)
        fault = beyond_range(totals, largest_numbers(asked, config, found.exponent), len(found.replies))
        if fault:
            log.warning("the total of round %d is of no use: %s", self.number, fault)
            return GroupSum(None, found.replies, spoiled=True)
        return GroupSum(totals, found.replies, found.needed)


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


def _as_update(sums: Sequence[GroupSum], expectation: ReplySchema, exchange: Exchange) -> wire.Update:
    """Turn sums over different sites into one update; raises ValueError where no sites can have sent such numbers."""
    config = exchange.config
    replies = [reply for found in sums for reply in found.replies.values()]
    totals: PackedSums = {}
    for found in sums:
        for key, value in (found.totals or {}).items():
            totals[key] = totals[key] + value if key in totals else value
    facts = {key: sum(int(u.facts.get(key, 0)) for u in replies) for key in ("images", "batches")}
    total = wire.Update(TOTAL_NAME, expectation.weights_hash or "", facts=dict(facts))
    privacy = config.privacy
    if not privacy.noise_multiplier:
        means = unpack_sums(totals, len(replies))
        update = replace(total, groups=means.groups, metrics=means.metrics)
        shapes = summed_groups(expectation.shapes)
        # a hostile site can spoil a total; nonsense must not reach the model
        fault = ReplySchema(shapes, expectation.weights_hash).fault(update)
        if fault is None and expectation.plausible is not None:
            # as one site with all the images: what is true of each of them is true of their sum
            one = dict(facts) | {"batches": -(-facts["images"] // config.local.batch)}
            grid = exchange.registry.sites[next(iter(sums[0].replies))].grid
            sender = Sender(TOTAL_NAME, facts["images"], grid, exchange.run_key, 0)
            fault = expectation.plausible(replace(update, facts=dict(one)), sender)
        if fault:
            raise ValueError(fault)
        return update
    # each site adds the whole noise, or under secure summation what the fewest sites need to make it up: of those
    # that sent keys, as the sites themselves count
    variance = sum(len(found.replies) / (found.needed if privacy.secure_sum else 1) for found in sums)
    height, width = exchange.registry.sites[next(iter(sums[0].replies))].grid
    noisy = NoisyTotal(
        totals,
        sites=len(replies),
        images=facts["images"],
        patches=height * width,
        deviation=privacy.noise_multiplier * float(np.sqrt(variance)),
    )
    return replace(total, groups=clean_groups(noisy, config))
