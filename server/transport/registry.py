"""The registry of connected sites: their names, what they said of themselves, and why others are refused.

Node ids are random and change when a site restarts; everything that has to be reproducible goes by name.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common import wire
from common.order import natural_items, natural_key
from common.settings.load import to_wire
from common.settings.schema import RunConfig
from server.transport.reply_checks import sanitize
from server.transport.retrying_link import Link, Outcome, paired

if TYPE_CHECKING:
    from flwr.app import Message

# A greeting is a few words; whatever is larger is no greeting.
HELLO_LIMIT_BYTES = 1 << 16

# What merging and scoring may add to the time between two looks for answers to greetings.
HEARING_SECONDS = 60.0

# What a site may call itself: its name becomes a part of keys in checkpoints and of lines in the log.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Sizes far above those of any site that can take part, and far below what would fill the server's memory.
MOST = {"images": 1 << 27, "channels": 1 << 16, "grid-height": 1 << 12, "grid-width": 1 << 12}
# A share of all images says something from so many sites on.
FEWEST_TO_SHARE = 3
# Characters: of a name in the log.
LONGEST_LABEL = 100


@dataclass(frozen=True)
class SiteInfo:
    """What a site said about itself; ``called`` is the name that it gives itself, if another one is registered."""

    name: str
    node_id: int
    images: int
    channels: int
    grid: tuple[int, int]
    weights_hash: str
    called: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a node takes no part. ``taken`` is the name it wants that another node has.

    ``label`` and ``reason`` may quote a site: they are kept to one printable line.
    """

    label: str
    reason: str
    taken: str = ""

    def __post_init__(self) -> None:
        """Bound what may be a site's own words."""
        object.__setattr__(self, "label", sanitize(self.label, LONGEST_LABEL))
        object.__setattr__(self, "reason", sanitize(self.reason))


@dataclass(frozen=True)
class Greeting:
    """A greeting without an answer: when that is ``late``, and until when it may come (monotonic clock)."""

    message: Message
    late: float
    until: float


@dataclass
class SiteRegistry:
    """Connected sites by name, and why others were refused.

    ``server_weights_hash`` and ``server_channels`` are those of the server's own model, where it has one. ``left_out``
    says which sites take no part until they are asked back, and why.
    """

    config: RunConfig
    run_key: str
    server_weights_hash: str = ""
    greeting: wire.Options = field(default_factory=dict)
    sites: dict[str, SiteInfo] = field(default_factory=dict)
    server_channels: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    _barred: dict[str, SiteInfo] = field(default_factory=dict)
    _common: tuple[str, int, tuple[int, int]] | None = None
    _refusals: dict[int, Refusal] = field(default_factory=dict)
    _greeted: dict[int, Greeting] = field(default_factory=dict)

    @property
    def weights_hash(self) -> str:
        """The hash of the model that all accepted sites share (a frozen backbone, or an architecture)."""
        return min((info.weights_hash for info in self.sites.values()), default="")

    @property
    def refused(self) -> dict[str, str]:
        """Why connected nodes are left out, by name."""
        return {refusal.label: refusal.reason for refusal in self._refusals.values()} | {
            name: self.left_out[name] for name in self._barred if name in self.left_out
        }

    @property
    def channels(self) -> int:
        """What all accepted sites' features have, 0 where there is no site."""
        return min((info.channels for info in self.sites.values()), default=0)

    def refresh(
        self, link: Link, round_number: int, notice: Callable[[str], None], wait: bool = True
    ) -> None:
        """Greet nodes that are new, take in those that answered, forget those that are gone.

        Without ``wait`` answers that are not there yet count at a later call: a newcomer that makes its features
        for an hour, or never answers, holds up nobody. Refused nodes are asked again: what was wrong may be mended.
        """
        before, refused = self.sites, self.refused
        nodes = set(link.node_ids())
        everyone = self.sites | self._barred
        self._barred = {name: info for name, info in everyone.items() if name in self.left_out}
        self.sites = {name: info for name, info in everyone.items() if name not in self.left_out}
        self._barred = {name: info for name, info in self._barred.items() if info.node_id in nodes}
        self.sites = {name: info for name, info in self.sites.items() if info.node_id in nodes}
        self._refusals = {node: refusal for node, refusal in self._refusals.items() if node in nodes}
        self._greeted = {node: sent for node, sent in self._greeted.items() if node in nodes}
        for name in sorted(set(before) - set(self.sites) - set(self._barred), key=natural_key):
            notice(f"site {name} is not connected any more")
        self._greet(link, self._strangers(nodes), round_number, notice)
        self._listen(link, link.deadline_seconds if wait else 0.0)
        self._refuse_strangers(set(before))
        if round_number:
            for name, info in natural_items(self.sites):
                if name not in before or before[name].node_id != info.node_id:
                    notice(f"site {name} takes part from now on")
        for name, reason in natural_items(self.refused):
            if refused.get(name) != reason:
                notice(f"site {name} is refused: {reason}")

    def _strangers(self, nodes: set[int]) -> list[int]:
        """Return the nodes that a greeting may make sites, in a fixed order."""
        known = {info.node_id for info in (self.sites | self._barred).values()} | set(self._greeted)
        # as long as its name is taken, asking again changes nothing
        taken = self.sites | self._barred
        barred = {node for node, refusal in self._refusals.items() if refusal.taken in taken}
        return sorted(nodes - known - barred)

    def _greet(self, link: Link, nodes: list[int], round_number: int, notice: Callable[[str], None]) -> None:
        if not nodes:
            return
        new = sum(node not in self._refusals for node in nodes)
        if new:
            work = "; a site caches its features now if it has none yet"
            notice(f"greeting {new} site(s){work if self.config.facts.frozen_backbone else ''}")
        task = wire.Task(
            round=round_number, settings=to_wire(self.config), run_key=self.run_key, options=self.greeting
        )
        content = wire.encode_task(task, self.config.wire.dtype)
        # It may be heard a whole round later, and a round may last its deadline.
        seconds = 2 * link.deadline_seconds + HEARING_SECONDS
        messages = [link.address(content, node, wire.HELLO, round_number, seconds) for node in nodes]
        link.send(messages)
        now = time.monotonic()
        for message in messages:
            node = message.metadata.dst_node_id
            self._greeted[node] = Greeting(message, now + link.deadline_seconds, now + seconds)

    def _listen(self, link: Link, seconds: float) -> None:
        """Read the answers to greetings that come within ``seconds``.

        A node that is late is refused, and taken in all the same if its answer still comes.
        """
        if not self._greeted:
            return
        sent = [greeting.message for greeting in self._greeted.values()]
        answers = dict(paired(sent, link.collect(sent, seconds), link.deadline_seconds))
        # where keys are registered under names, a site cannot call itself otherwise
        registered = link.registered_names()
        now = time.monotonic()
        for node in sorted(answers):
            outcome = answers[node]
            greeting = self._greeted[node]
            if outcome.silent and now < greeting.late:
                continue
            if not outcome.silent or now >= greeting.until:
                del self._greeted[node]
            self._refusals.pop(node, None)
            found = self._read(node, outcome, registered.get(node))
            if isinstance(found, Refusal):
                self._refusals[node] = found
            elif found.name in self.left_out:
                self._barred[found.name] = found
            else:
                self.sites[found.name] = found

    def _read(self, node_id: int, outcome: Outcome, registered: str | None) -> SiteInfo | Refusal:
        label = registered or f"node-{node_id}"
        if outcome.content is None:
            return Refusal(label, str(outcome.error))
        try:
            update = wire.decode_update(outcome.content, HELLO_LIMIT_BYTES, {})
        except wire.WireError as error:
            said = wire.site_of(outcome.content) or ""
            return Refusal(said if NAME.fullmatch(said) else label, str(error))
        name = registered or update.site
        if not NAME.fullmatch(name):
            return Refusal(
                label, f"it calls itself {name[:64]!r}; expected letters, digits, '.', '_' and '-'"
            )
        if name in self.sites or name in self._barred:
            taken = f"another node already calls itself {name}; give every site a name of its own"
            return Refusal(f"{name} (node {node_id})", taken, taken=name)
        # a site that cannot take part says why
        if "error" in update.facts:
            return Refusal(name, str(update.facts["error"]))
        numbers = {key: update.facts.get(key) for key in ("images", "channels", "grid-height", "grid-width")}
        for key, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                return Refusal(name, f"its greeting is incomplete ({key} is {str(number)[:40]})")
            if number > MOST[key]:
                return Refusal(
                    name, f"its greeting is absurd ({key} is {number}, at most {MOST[key]} is believed)"
                )
        if update.run_key != self.run_key:
            return Refusal(name, "its greeting belongs to another run")
        images, channels, height, width = (int(str(number)) for number in numbers.values())
        grid = (height, width)
        return SiteInfo(name, node_id, images, channels, grid, update.weights_hash, update.site)

    def _refuse_strangers(self, known: set[str]) -> None:
        """Keep only sites whose features are the common ones: another model, or size, has another meaning.

        What is common is decided once, when the first sites have answered: newcomers outvote nobody.
        """
        if not self.sites:
            return
        own = (
            self.config.facts.frozen_backbone and self.config.model.pixels
        )  # grids follow each site's images
        common = self._common or self._elected(bool(own))
        for name, info in list(self.sites.items()):
            reason = ""
            if info.weights_hash != common[0]:
                reason = f"its backbone weights ({info.weights_hash[:12]}) are not the common ones ({common[0][:12]})"
            elif info.channels != common[1]:
                reason = f"its features have {info.channels} channels, those of the others {common[1]}"
            elif (
                info.grid != common[2]
                if not own
                else not 0.5 <= math.prod(info.grid) / math.prod(common[2]) <= 2
            ):
                theirs = "{} x {}".format(*common[2])
                reason = f"its grid is {info.grid[0]} x {info.grid[1]}, that of the others {theirs}"
            elif name not in known:
                reason = self._overweight(info)
            if reason:
                self._refusals[info.node_id] = Refusal(name, reason)
                del self.sites[name]

    def _elected(self, own_grids: bool) -> tuple[str, int, tuple[int, int]]:
        """Return hash, channels and grid of the server's own model, else of most sites; of equals, the smallest."""
        voters = list(self.sites.values())
        if self.server_weights_hash:
            voters = [info for info in voters if info.weights_hash == self.server_weights_hash]
        if self.server_channels:
            voters = [info for info in voters if info.channels == self.server_channels]
        if not voters:
            return self.server_weights_hash, self.server_channels, (1, 1)
        votes = Counter((info.weights_hash, info.channels) for info in voters)
        weights_hash, channels = min(key for key, count in votes.items() if count == max(votes.values()))
        grids = sorted(
            info.grid for info in voters if (info.weights_hash, info.channels) == (weights_hash, channels)
        )
        # sorted: of equals the first, the smallest
        grid = (
            sorted(grids, key=math.prod)[(len(grids) - 1) // 2] if own_grids else max(grids, key=grids.count)
        )
        self._common = (weights_hash, channels, grid)
        return self._common

    def _overweight(self, info: SiteInfo) -> str:
        """Return why a newcomer claims too large a share of all images, or nothing."""
        most, everything = self.config.sites.largest_share, sum(site.images for site in self.sites.values())
        if len(self.sites) < FEWEST_TO_SHARE or info.images <= most * everything:
            return ""
        return (
            f"it says that it has {info.images} of {everything} images, more than sites.largest-share {most:g} of all; "
            "raise that if it is true"
        )
