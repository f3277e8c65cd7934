"""Sites in folders of their own that take part in secure sums without a network, honest or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.privacy.secure_site import (
    answer_consistency,
    answer_keys,
    answer_shares,
    answer_unmask,
    mask_summands,
)
from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.privacy.binding import session_of
from common.settings.load import load_config
from common.settings.schema import RunConfig
from server.privacy.secure_sum import Post, SecureSum, SecureTotal
from server.transport.exchange import Payload
from server.transport.reply_checks import ReplySchema

LENGTH = 5
BITS = 40
Spoil = Callable[[str, str, wire.Update], wire.Update]
Tamper = Callable[[str, str, Payload], Payload]

HANDLERS = {
    wire.SECURE_KEYS: answer_keys,
    wire.SECURE_SHARES: answer_shares,
    wire.SECURE_CONSISTENCY: answer_consistency,
    wire.SECURE_UNMASK: answer_unmask,
}
ACTIONS = (
    wire.SECURE_KEYS,
    wire.SECURE_SHARES,
    wire.TRAIN,
    wire.SECURE_CONSISTENCY,
    wire.SECURE_UNMASK,
)


def lost_from(action: str) -> set[str]:
    """Return the actions that a site does not answer any more when it is lost at one."""
    return set(ACTIONS[ACTIONS.index(action) :])


def settings_of(**privacy: float) -> RunConfig:
    return load_config({"privacy.secure-sum": True} | {f"privacy.{key}": v for key, v in privacy.items()})


@dataclass
class Sites:
    """Sites that answer letters: ``lost`` ones not, ``spoil`` changes what they say, ``tamper`` what they hear."""

    folder: Path
    values: dict[str, np.ndarray]
    lost: Mapping[str, set[str]] = field(default_factory=dict)
    spoil: Spoil = lambda name, action, update: update
    tamper: Tamper = lambda name, action, letter: letter
    settings: RunConfig = field(default_factory=lambda: settings_of(colluders=0))
    seen: list[tuple[str, str, wire.Update]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    members: dict[str, Path] = field(default_factory=dict)
    run: str = "run"
    label: str = "s"
    number: int = 3
    post: Post | None = None

    def site(self, name: str) -> SiteConfig:
        return SiteConfig(
            name=name, shards=(), cache_dir=self.folder, state_dir=self.folder, members=self.members.get(name)
        )

    def answer(self, name: str, action: str, letter: Payload) -> wire.Update:
        task = wire.Task(self.number, self.settings.to_json(), self.run, letter.groups, letter.options)
        site = self.site(name)
        if action == wire.TRAIN:
            groups, context = mask_summands({"x/x": self.values[name]}, task, site, "train")
            return wire.Update(name, "", groups, facts={"images": 1, "context": context})
        return HANDLERS[action](task, self.settings, site)

    def __call__(
        self, letters: Mapping[str, Payload], action: str, expectation: ReplySchema
    ) -> dict[str, wire.Update]:
        """Post letters, as an exchange does: what is not as expected, or an error, is left out with the reason."""
        found = {}
        for name, letter in letters.items():
            if action in self.lost.get(name, ()):
                continue
            try:
                update = self.answer(name, action, self.tamper(name, action, letter))
            except UserError as error:
                self.refuse(name, f"it reported: {error}")
                continue
            update = self.spoil(name, action, update)
            fault = expectation.fault(update)
            if fault:
                self.refuse(name, fault)
                continue
            self.seen.append((name, action, update))
            found[name] = update
        return found

    def refuse(self, name: str, reason: str) -> None:
        self.refused[name] = reason

    def sum(self) -> SecureSum:
        return SecureSum(
            self.post or self,
            LENGTH,
            bits=lambda exponent: {"x": BITS},
            session=session_of(self.run, self.number, self.label),
            label=self.label,
            quorum=self.settings.privacy.quorum,
            colluders=self.settings.privacy.colluders,
            refuse=self.refuse,
        )

    def total(self, names: list[str] | None = None) -> SecureTotal:
        asked = {"head": {"weight": np.ones(3, np.float32)}}
        letters = {name: Payload(asked, {"phase": "train"}) for name in names or self.values}
        return self.sum().total(letters, wire.TRAIN)


def values_of(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {f"site-{i:02}": rng.normal(size=LENGTH) for i in range(count)}
