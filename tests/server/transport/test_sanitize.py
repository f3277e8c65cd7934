"""Can nothing that a site says fill a log, break a line of it, or play with a terminal?"""

from __future__ import annotations

import time

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common import wire
from common.settings.load import load_config
from server.transport.exchange import Exchange, Payload
from server.transport.registry import SiteInfo, SiteRegistry
from server.transport.reply_checks import LONGEST, ReplySchema, sanitize
from server.transport.retrying_link import Link
from tests.support.local_grid import LocalGrid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no disk", "no disk"),
        ("two\nlines\r\nand\u2028more\x0bof\tthem", "two lines and more of them"),
        ("\x1b[2Jgone\x00\u202eback", "?[2Jgone??back"),
        ("Größe 3 × 4", "Größe 3 × 4"),
        ("", ""),
        ("a" * LONGEST, "a" * LONGEST),
        ("a" * (LONGEST + 1), "a" * (LONGEST - 3) + "..."),
        (" " * 10_000 + "late", "..."),
    ],
)
def test_words_become_one_printable_line(text: str, expected: str) -> None:
    assert sanitize(text) == expected


def test_a_text_of_many_megabytes_is_not_looked_through() -> None:
    text = "\n" * (1 << 26)
    began = time.perf_counter()
    assert len(sanitize(text)) <= LONGEST
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize(
    "update",
    [
        wire.Update("a", "", facts={"error": "no\ndisk \x1b[2J" * 999}),
        wire.Update("a", "\n" * 20, groups={"head": {"w": np.zeros(2, np.float32)}}, facts={"images": 1}),
        wire.Update("a", "", groups={"x\n" * 999: {"w": np.zeros(2)}}),
        wire.Update("a", "", groups={"head": {f"{i}\n{'y' * 999}": np.zeros(2) for i in range(3)}}),
        wire.Update("a", "", metrics={f"m\n{i}": 0.0 for i in range(99)}),
        wire.Update("a", "", wire_version="9\n" * 999),  # type: ignore[arg-type]
    ],
    ids=["error", "hash", "group", "array", "metrics", "version"],
)
def test_a_reason_of_a_round_is_one_short_line(update: wire.Update) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(wire.encode_update(update, "float32"), reply_to=message)

    config = load_config({"sites.deadline-seconds": 1})
    registry = SiteRegistry(config, "run")
    registry.sites["a"] = SiteInfo("a", 7, 1, 1, (1, 1), "ab" * 32)

    exchange = Exchange(config, "run", Link(LocalGrid(app, {7: {}}), 1, 0.01), registry)
    schema = ReplySchema({"head": {"w": (2,)}}, "ab" * 32)
    found = exchange({"a": Payload()}, wire.TRAIN, 1, schema)
    assert not found.updates
    reason = found.quarantined["a"]
    assert 0 < len(reason) <= LONGEST and reason.isprintable()
