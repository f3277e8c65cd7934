"""Which sites are connected, under which names, and do they fit together?

Node ids are random and change when a site restarts; everything that has to be reproducible goes by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from common import wire
from common.config import RunConfig
from server.link import Link, Outcome, outcomes

HELLO_LIMIT_BYTES = 1 << 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a site may call itself: its name becomes a part of keys in checkpoints and of lines in the log."""


@dataclass(frozen=True)
class SiteInfo:
    """What a site said about itself."""

    name: str
    node_id: int
    images: int
    channels: int
    grid: tuple[int, int]
    weights_hash: str


@dataclass
class Registry:
    """Connected sites by name, and why others were refused."""

    config: RunConfig
    run_key: str
    server_weights_hash: str = ""
    greeting: wire.Options = field(default_factory=dict)
    sites: dict[str, SiteInfo] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def refresh(self, link: Link, round_number: int, notice: Callable[[str], None]) -> None:
        """Greet nodes that are new and forget those that are gone."""
        nodes = link.node_ids()
        self.sites = {name: info for name, info in self.sites.items() if info.node_id in nodes}
        known = {info.node_id for info in self.sites.values()}
        new = [node for node in nodes if node not in known]
        if not new:
            return
        self.refused = {}
        task = wire.Task(
            round=round_number, settings=self.config.to_wire(), run_key=self.run_key, options=self.greeting
        )
        content = wire.encode_task(task, self.config.wire.dtype)
        caches = self.config.task == "unsupervised"
        notice(
            f"greeting {len(new)} site(s)"
            + ("; a site caches its features now if it has none yet" if caches else "")
        )
        deadline = self.config.sites.deadline_seconds
        messages = [wire.make_message(content, node, wire.HELLO, round_number, deadline) for node in new]
        replies = link.exchange(messages, deadline)
        registered = link.registered_names()
        for node, outcome in outcomes(messages, replies, deadline).items():
            info = self._accept(node, outcome, registered.get(node))
            if info is not None:
                self.sites[info.name] = info
        self._refuse_strangers()
        for name, reason in sorted(self.refused.items()):
            notice(f"site {name} is refused: {reason}")

    def _accept(self, node_id: int, outcome: Outcome, registered: str | None) -> SiteInfo | None:
        label = registered or f"node-{node_id}"
        if outcome.content is None:
            self.refused[label] = str(outcome.error)
            return None
        try:
            update = wire.decode_update(outcome.content, HELLO_LIMIT_BYTES)
        except wire.WireError as error:
            self.refused[wire.site_of(outcome.content) or label] = str(error)
            return None
        name = registered or update.site
        if not NAME.fullmatch(name):
            self.refused[label] = f"it calls itself {name[:64]!r}; expected letters, digits, '.', '_' and '-'"
            return None
        if "error" in update.facts:
            self.refused[name] = str(update.facts["error"])
            return None
        if name in self.sites:
            self.refused[f"{name} (node {node_id})"] = (
                f"another node already calls itself {name}; give every site a name of its own"
            )
            return None
        numbers = {key: update.facts.get(key) for key in ("images", "channels", "grid-height", "grid-width")}
        for key, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                self.refused[name] = f"its greeting is incomplete ({key} is {str(number)[:40]})"
                return None
        images, channels, height, width = (int(str(number)) for number in numbers.values())
        return SiteInfo(name, node_id, images, channels, (height, width), update.weights_hash)

    def _refuse_strangers(self) -> None:
        """Keep only sites whose frozen backbone is the common one: other features, other meaning."""
        if not self.sites:
            return
        votes = Counter(info.weights_hash for info in self.sites.values())
        most = max(votes.values())
        common = self.server_weights_hash or min(h for h, count in votes.items() if count == most)
        for name, info in list(self.sites.items()):
            if info.weights_hash != common:
                self.refused[name] = (
                    f"its backbone weights ({info.weights_hash[:12]}) are not the common ones ({common[:12]})"
                )
                del self.sites[name]
