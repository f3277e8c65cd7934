"""One exchange with sites: address a message to each, send them, wait, and check every reply.

Rounds, scores, polish passes, styles and each step of secure aggregation go this way. Large replies wait in files
until a round is over: the mean over sites is taken in the order of their names, so the first may wait for the last.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common import wire
from common.errors import UserError
from common.order import natural_items
from common.settings.load import to_wire
from common.settings.schema import RunConfig
from common.training.clock import SECONDS
from server.transport.held_networks import HeldNetworks
from server.transport.registry import SiteRegistry
from server.transport.reply_checks import REPORTED, ReplySchema, Sender, read_update, sanitize
from server.transport.retrying_link import Link, Outcome

if TYPE_CHECKING:
    from flwr.app import Message


# Bytes: arrays start at multiples of it, so that numpy may view them in place.
ALIGNED = 16


def buffered(update: wire.Update, folder: Path) -> wire.Update:
    """Return the update with arrays that lie in a file of ``folder``, read-only; raises `UserError` on a full disk."""
    found = [(name, key, array) for name, arrays in update.groups.items() for key, array in arrays.items()]
    groups: wire.Groups = {name: {} for name in update.groups}
    try:
        kept = on_disk([array for _, _, array in found], folder)
    except OSError as error:
        raise UserError(
            f"Cannot keep an answer of site {update.site} in {folder}: {error.strerror or error}; free some space and "
            "go on with resume."
        ) from error
    for (name, key, _), array in zip(found, kept, strict=True):
        groups[name][key] = array
    return replace(update, groups=groups)


def on_disk(arrays: Sequence[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return arrays that lie in a file of ``folder``, read-only; raises `OSError` on a full disk."""
    with tempfile.TemporaryFile(dir=folder) as file:
        places = []
        for array in arrays:
            file.write(bytes(-file.tell() % ALIGNED))
            places.append(file.tell())
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        # the file has no name, so that nothing is left of it whatever ends the run
        pages = np.memmap(file, dtype=np.uint8, mode="r") if file.tell() else np.zeros(0, np.uint8)
    return [
        pages[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        for array, place in zip(arrays, places, strict=True)
    ]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Payload:
    """What one site is sent beside the settings."""

    groups: wire.Groups = field(default_factory=dict)
    options: wire.Options = field(default_factory=dict)


@dataclass
class Replies:
    """What came of one exchange, or of several that make a round; by site name.

    Attributes:
        updates: the replies that are as expected, in the order of names.
        quarantined: why the others are left out.
        refused: those of them whose reply came and was wrong; the others were absent.
        bytes_up: payloads that came.
        bytes_down: payloads that were sent, also to those that did not answer.
        seconds: from when messages were sent until an answer was there.
        total: where the server may know the sum over sites alone, the update that stands for all of them; then
            ``updates`` say who is in it and have no arrays.
    """

    updates: dict[str, wire.Update] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    total: wire.Update | None = None

    @property
    def to_merge(self) -> dict[str, wire.Update]:
        """The updates that merge rules take: of every site, or the total as if it were one site's."""
        return self.updates if self.total is None else {self.total.site: self.total}

    def refuse(self, name: str, reason: str) -> None:
        """Leave out a reply that came in, by name."""
        del self.updates[name]
        self.quarantined[name] = sanitize(reason)
        self.refused.add(name)
        log.warning("site %s is left out: %s", name, self.quarantined[name])

    def add_account(self, other: Replies) -> None:
        """Add the bytes and reasons of a further exchange of the same round."""
        for mine, new in ((self.bytes_up, other.bytes_up), (self.bytes_down, other.bytes_down)):
            for name, size in new.items():
                mine[name] = mine.get(name, 0) + size
        self.quarantined |= other.quarantined
        self.refused |= other.refused

    @property
    def spent(self) -> dict[str, dict[str, float]]:
        """Seconds of each site that tells them: its training's parts, the rest of its work, and of the way.

        The way has the network in it and, where several sites share a machine, their waiting for each other.
        """
        found: dict[str, dict[str, float]] = {}
        for name, update in self.updates.items():
            told = {
                key.removeprefix(SECONDS): value
                for key, value in update.metrics.items()
                if key.startswith(SECONDS)
            }
            site = told.pop("site", None)
            if site is not None:
                parts = told | {"other": site - sum(told.values())}
                parts["network"] = max(self.seconds.get(name, site) - site, 0.0)
                found[name] = {key: round(value, 3) for key, value in parts.items()}
        return found

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the images of the sites; None where no site told it."""
        told = {name: update for name, update in self.updates.items() if metric in update.metrics}
        images = {name: int(update.facts.get("images", 0)) for name, update in told.items()}
        weighed = [update.metrics[metric] * images[name] for name, update in told.items()]
        everything = sum(images.values())
        return sum(weighed) / everything if weighed and everything else None


@dataclass
class Exchange:
    """Sends tasks to sites by name over a link, and checks what they reply.

    Replies wait in a file of ``buffer_dir`` for the last one, where there is such a folder.
    """

    config: RunConfig
    run_key: str
    link: Link
    registry: SiteRegistry
    buffer_dir: Path | None = None
    held: HeldNetworks | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.config.wire.differences != "none":
            self.held = HeldNetworks(self.config.wire, self._kept)

    def _kept(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return arrays that lie on disk where replies do."""
        return list(arrays) if self.buffer_dir is None else on_disk(arrays, self.buffer_dir)

    def __call__(
        self, payloads: Mapping[str, Payload], action: str, number: int, schema: ReplySchema
    ) -> Replies:
        """Send each site its payload, wait until the deadline, and return the checked replies."""
        return self.collect(self.address(payloads.items(), action, number), schema, number)

    def address(self, payloads: Iterable[tuple[str, Payload]], action: str, number: int) -> list[Message]:
        """Return one message per site; arrays that go to several sites are encoded once."""
        settings = to_wire(self.config)
        # a shared network is encoded once, whoever many sites get it
        encoded: wire.Encoded = {}
        messages = []
        changes = self.held if action == wire.TRAIN else None
        if changes is not None:
            changes.begin()
        for name, payload in payloads:
            groups, options = payload.groups, payload.options
            if changes is not None and "weights" in groups:
                groups, options = changes.message(name, groups, options)
            task = wire.Task(number, settings, self.run_key, groups, options)
            content = wire.encode_task(task, self.config.wire.dtype, encoded)
            messages.append(self.link.address(content, self.registry.sites[name].node_id, action, number))
        return messages

    def collect(self, messages: Iterable[Message], schema: ReplySchema, number: int) -> Replies:
        """Send the messages of a round, and check every reply as it comes until the deadline."""
        began, seconds = time.monotonic(), {}
        names = {info.node_id: name for name, info in self.registry.sites.items()}

        def clocked() -> Iterator[tuple[int, Outcome]]:
            for node, outcome in self.link.outcomes(messages):
                seconds[names[node]] = time.monotonic() - began
                yield node, outcome

        return replace(self.check(clocked(), schema, number), seconds=seconds)

    def check(self, outcomes: Iterable[tuple[int, Outcome]], schema: ReplySchema, number: int) -> Replies:
        """Read what came of a round's messages, by node; a reply that fails is left out, with name and reason."""
        names = {info.node_id: name for name, info in self.registry.sites.items()}
        found = Replies()
        changes = self.held if self.held is not None and "weights" in schema.shapes else None
        seen = schema if changes is None else changes.schema(schema)
        for node, outcome in outcomes:
            name = names[node]
            found.bytes_down[name] = outcome.bytes_down
            if outcome.content is None:
                # its reason may hold a site's own words
                found.quarantined[name] = sanitize(str(outcome.error))
                continue
            found.bytes_up[name] = wire.payload_bytes(outcome.content)
            info = self.registry.sites[name]
            sender = Sender(info.called, info.images, info.grid, self.run_key, number)
            update, reason = read_update(outcome.content, seen, sender)
            if changes is not None and update is not None:
                update, reason = changes.whole(name, update)
                reason = reason or (schema.plausible(update, sender) if update and schema.plausible else None)
                update = None if reason else update
            if update is None:
                found.quarantined[name] = sanitize(str(reason))
                if not str(reason).startswith(REPORTED):
                    found.refused.add(name)
            else:
                found.updates[name] = update if self.buffer_dir is None else buffered(update, self.buffer_dir)
        # by name, whoever answered first: sums of floats depend on their order
        found = Replies(
            updates=dict(sorted(found.updates.items())),
            refused=found.refused,
            quarantined=dict(natural_items(found.quarantined)),
            bytes_up=dict(natural_items(found.bytes_up)),
            bytes_down=dict(natural_items(found.bytes_down)),
        )
        for name, reason in found.quarantined.items():
            log.warning("site %s is left out: %s", name, reason)
        return found
