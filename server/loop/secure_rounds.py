"""Exchanges of which the server learns the total over the sites only (`server.privacy.totals`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from common import wire
from server.privacy.accountant import releases_of, spend
from server.privacy.totals import total_round
from server.transport.exchange import Exchange, Payload, Replies
from server.transport.reply_checks import ReplySchema


@dataclass
class RoundDispatch:
    """Carries out the several exchanges of one total, and keeps their account."""

    exchange: Exchange
    number: int
    account: Replies = field(default_factory=Replies)

    def __call__(
        self, letters: Mapping[str, Payload], action: str, expectation: ReplySchema
    ) -> dict[str, wire.Update]:
        """Send each site its letter and return the replies that are as expected, by name."""
        found = self.exchange(letters, action, self.number, expectation)
        self.account.add_account(found)
        return found.updates


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

    Args:
        schema: how the reply of one site would have to look.
        phase: what the sites do, for the privacy accountant: it is charged before anything is sent.
        label: tells this total from the others of the round.
    """
    dispatch, config = RoundDispatch(exchange, number), exchange.config
    if config.privacy.noise_multiplier:
        spend(run_dir, list(payloads), releases_of(phase))
    total, stayed = total_round(
        payloads,
        action,
        dispatch,
        schema,
        exchange.registry.sites,
        config,
        run_key=exchange.run_key,
        round_number=number,
        label=label,
    )
    found = dispatch.account
    if total is not None:
        found.total = total
        found.updates = {
            name: replace(reply, groups={}, metrics=dict(total.metrics)) for name, reply in stayed.items()
        }
    for name in stayed:
        found.quarantined.pop(name, None)  # lost after its numbers were in: it is part of the total
    return found
