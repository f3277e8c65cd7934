"""How does the round loop go where only totals over the sites are known (`server.privacy.totals`)?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import wire
from common.settings.load import to_wire
from server.loop.strategy import Gathered, SegmentationStrategy
from server.privacy.accountant import releases_of, spend
from server.privacy.secure_sum import Payload
from server.privacy.totals import ALL_SITES, total_round
from server.tasks.unsupervised import UnsupervisedWork
from server.transport.link import Link, time_to_live
from server.transport.reply_checks import ReplySchema

log = logging.getLogger(__name__)


@dataclass
class RoundDispatch:
    """Sends letters for one round and keeps account of bytes and of sites that were lost."""

    strategy: SegmentationStrategy
    link: Link
    number: int
    account: Gathered = field(default_factory=Gathered)

    def __call__(
        self, letters: Mapping[str, Payload], action: str, expectation: ReplySchema
    ) -> dict[str, wire.Update]:
        """Send each site its letter and return the replies that are as expected, by name."""
        strategy, config = self.strategy, self.strategy.config
        settings, deadline = to_wire(config), config.sites.deadline_seconds
        strategy.sent = []
        for name, letter in letters.items():
            task = wire.Task(self.number, settings, strategy.run_key, letter.groups, letter.options)
            node = strategy.registry.sites[name].node_id
            content = wire.encode_task(task, config.wire.dtype)
            ttl = time_to_live(deadline)
            strategy.sent.append(wire.make_message(content, node, action, self.number, ttl))
        found = strategy.gather(self.link.exchange(strategy.sent, deadline), expectation)
        add_account(self.account, found)
        return found.updates


def add_account(account: Gathered, found: Gathered) -> None:
    """Add bytes and reasons of one message phase to those of a round."""
    for mine, new in ((account.bytes_up, found.bytes_up), (account.bytes_down, found.bytes_down)):
        for name, size in new.items():
            mine[name] = mine.get(name, 0) + size
    account.quarantined |= found.quarantined


def train_totals(strategy: SegmentationStrategy, link: Link, run_dir: Path, number: int) -> bool:
    """Run one round over totals; returns whether it counts. ``strategy.gathered`` tells how it went."""
    phase = strategy.work.phase(number)
    names = strategy.choose(number)
    expectation = strategy.work.expect(strategy.state, phase, strategy.weights_hash)
    post = RoundDispatch(strategy, link, number)
    update, stayed = _total(post, names, wire.TRAIN, expectation, {}, "train", run_dir, releases_of(phase))
    metrics = {} if update is None else update.metrics
    post.account.updates = {
        name: replace(reply, groups={}, metrics=dict(metrics)) for name, reply in stayed.items()
    }
    for name in stayed:
        post.account.quarantined.pop(name, None)  # lost after its numbers were in: it is part of the total
    strategy.gathered = post.account
    if update is None or len(stayed) < strategy.config.sites.minimum:
        log.warning(
            "round %d does not count: %d sites in the total, %d needed",
            number,
            len(stayed),
            strategy.config.sites.minimum,
        )
        return False
    strategy.state = strategy.work.merge(strategy.state, {ALL_SITES: update}, number)
    return True


def polish_totals(
    strategy: SegmentationStrategy,
    work: UnsupervisedWork,
    link: Link,
    run_dir: Path,
    number: int,
    index: int,
) -> Gathered:
    """Ask all sites for the sums of one polish pass; ``updates`` is the total under one name, or empty."""
    post = RoundDispatch(strategy, link, number)
    expectation = work.expect_sums(strategy.state, strategy.weights_hash)
    names, options = sorted(strategy.registry.sites), {"what": "clusters"}
    update, _ = _total(
        post, names, wire.SUMS, expectation, options, f"polish-{index}", run_dir, releases_of("clusters")
    )
    post.account.updates = {} if update is None else {ALL_SITES: update}
    return post.account


def _total(
    post: RoundDispatch,
    names: list[str],
    action: str,
    expectation: ReplySchema,
    options: Mapping[str, str],
    label: str,
    run_dir: Path,
    releases: int,
) -> tuple[wire.Update | None, dict[str, wire.Update]]:
    strategy = post.strategy
    letters = {}
    for name in names:
        groups, told = strategy.work.parts(strategy.state, name, post.number, action)
        letters[name] = Payload(groups, told | dict(options))
    if strategy.config.privacy.noise_multiplier:
        spend(run_dir, names, releases)
    return total_round(
        letters,
        action,
        post,
        expectation,
        strategy.registry.sites,
        strategy.config,
        run_key=strategy.run_key,
        round_number=post.number,
        label=label,
    )
