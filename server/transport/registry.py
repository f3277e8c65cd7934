"""The registry of connected sites: their names, what they said of themselves, and why others are refused.

Node ids are random and change when a site restarts; everything that has to be reproducible goes by name.
"""

from __future__ import annotations

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
# Characters: of a name in the log.
LONGEST_LABEL = 100


@dataclass(frozen=True)
class SiteInfo:
    """What a site said about itself."""

    name: str
    node_id: int
    images: int
    channels: int
    grid: tuple[int, int]
    weights_hash: str


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
    """Connected sites by name, and why others were refused."""

    config: RunConfig
    run_key: str
    server_weights_hash: str = ""
    greeting: wire.Options = field(default_factory=dict)
    sites: dict[str, SiteInfo] = field(default_factory=dict)
    _refusals: dict[int, Refusal] = field(default_factory=dict)
    _greeted: dict[int, Greeting] = field(default_factory=dict)

    @property
    def weights_hash(self) -> str:
        """The hash of the model that all accepted sites share (a frozen backbone, or an architecture)."""
        return min((info.weights_hash for info in self.sites.values()), default="")

    @property
    def refused(self) -> dict[str, str]:
        """Why connected nodes are left out, by name."""
        return {refusal.label: refusal.reason for refusal in self._refusals.values()}

    def refresh(
        self, link: Link, round_number: int, notice: Callable[[str], None], wait: bool = True
    ) -> None:
        """Greet nodes that are new, take in those that answered, forget those that are gone.

        Without ``wait`` answers that are not there yet count at a later call: a newcomer that makes its features
        for an hour, or never answers, holds up nobody. Refused nodes are asked again: what was wrong may be mended.
        """
        before, refused = self.sites, self.refused
        nodes = set(link.node_ids())
        self.sites = {name: info for name, info in self.sites.items() if info.node_id in nodes}
        self._refusals = {node: refusal for node, refusal in self._refusals.items() if node in nodes}
        self._greeted = {node: sent for node, sent in self._greeted.items() if node in nodes}
        for name in sorted(set(before) - set(self.sites), key=natural_key):
            notice(f"site {name} is not connected any more")
        self._greet(link, self._strangers(nodes), round_number, notice)
        self._listen(link, link.deadline_seconds if wait else 0.0)
        self._refuse_strangers()
        if round_number:
            for name, info in natural_items(self.sites):
                if name not in before or before[name].node_id != info.node_id:
                    notice(f"site {name} takes part from now on")
        for name, reason in natural_items(self.refused):
            if refused.get(name) != reason:
                notice(f"site {name} is refused: {reason}")

    def _strangers(self, nodes: set[int]) -> list[int]:
        """Return the nodes that a greeting may make sites, in a fixed order."""
        known = {info.node_id for info in self.sites.values()} | set(self._greeted)
        # as long as its name is taken, asking again changes nothing
        barred = {node for node, refusal in self._refusals.items() if refusal.taken in self.sites}
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
        if name in self.sites:
            taken = f"another node already calls itself {name}; give every site a name of its own"
            return Refusal(f"{name} (node {node_id})", taken, taken=name)
        # a site that cannot take part says why
        if "error" in update.facts:
            return Refusal(name, str(update.facts["error"]))
        numbers = {key: update.facts.get(key) for key in ("images", "channels", "grid-height", "grid-width")}
        for key, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                return Refusal(name, f"its greeting is incomplete ({key} is {str(number)[:40]})")
        images, channels, height, width = (int(str(number)) for number in numbers.values())
        return SiteInfo(name, node_id, images, channels, (height, width), update.weights_hash)

    def _refuse_strangers(self) -> None:
        """Keep only sites whose frozen backbone is the common one: other features, other meaning."""
        if not self.sites:
            return
        votes = Counter(info.weights_hash for info in self.sites.values())
        most = max(votes.values())
        # the server's own model decides; without one, most sites do, of equals the first by hash
        common = self.server_weights_hash or min(h for h, count in votes.items() if count == most)
        for name, info in list(self.sites.items()):
            if info.weights_hash != common:
                self._refusals[info.node_id] = Refusal(
                    name,
                    f"its backbone weights ({info.weights_hash[:12]}) are not the common ones ({common[:12]})",
                )
                del self.sites[name]
