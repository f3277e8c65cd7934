"""Do large replies wait on disk, whole and one after another, and leave nothing behind?"""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from common import wire
from common.settings.load import load_config
from server.transport.exchange import Exchange, Payload, buffered
from server.transport.registry import SiteInfo, SiteRegistry
from server.transport.reply_checks import ReplySchema
from server.transport.retrying_link import Link, paired
from tests.support.local_grid import LocalGrid, set_identity

F32 = np.float32


def update(site: str, value: float = 1.0, size: int = 6) -> wire.Update:
    groups: wire.Groups = {
        "weights": {"w": np.full(size, value, F32), "odd": np.arange(3, dtype=np.uint8)},
        "statistics": {"mean": np.array(value, F32), "none": np.zeros((0, 4), F32)},
    }
    return wire.Update(site, "", groups, {"loss": 1.0}, {"images": 1, "batches": 1})


def test_arrays_come_back_bit_for_bit_and_cannot_be_written_to(tmp_path: Path) -> None:
    given = update("a", 0.1)
    found = buffered(given, tmp_path)
    assert (found.site, found.metrics, found.facts) == (given.site, given.metrics, given.facts)
    for name, arrays in given.groups.items():
        assert found.groups[name].keys() == arrays.keys()
        for key, array in arrays.items():
            back = found.groups[name][key]
            assert back.dtype == array.dtype and back.shape == array.shape
            assert back.tobytes() == array.tobytes()
            with pytest.raises(ValueError, match="read-only"):
                back[...] = 0
    assert list(tmp_path.iterdir()) == []  # no name is left, whatever ends the run


def test_an_update_without_arrays_needs_no_file(tmp_path: Path) -> None:
    assert buffered(wire.Update("a", ""), tmp_path).groups == {}


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(Exception, match=r"answer of site a .*No space left on device; free some space"):
        buffered(update("a"), tmp_path)


def exchange_of(tmp_path: Path, sites: int, **settings: object) -> Exchange:
    set_identity()
    config = load_config({"task": "supervised", **settings})
    registry = SiteRegistry(config, "run")
    for i in range(sites):
        registry.sites[str(i)] = SiteInfo(str(i), i + 2, 1, 8, (1, 1), "", str(i))
    grid = LocalGrid(ClientApp(), {})
    return Exchange(config, "run", Link(grid, 60, 0.01), registry, tmp_path)


def payload(site: int, shared: np.ndarray) -> Payload:
    """Return the same arrays for every site, and one of its own."""
    return Payload({"weights": {"w": shared}, "statistics": {"own": np.array([float(site)], F32)}})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_all_sites_are_sent_is_in_memory_once(tmp_path: Path, dtype: str) -> None:
    sender, shared = exchange_of(tmp_path, 5, **{"wire.dtype": dtype}), np.linspace(0, 1, 1000, dtype=F32)
    messages = sender.address(((str(i), payload(i, shared)) for i in range(5)), wire.TRAIN, 1)
    arrays = [message.content.array_records["weights"]["w"] for message in messages]
    assert all(array is arrays[0] for array in arrays) and arrays[0].dtype == dtype
    own = [message.content.array_records["statistics"]["own"].numpy() for message in messages]
    assert [value.item() for value in own] == [0, 1, 2, 3, 4]  # made anew for each site, never mixed up


def test_replies_leave_memory_one_by_one_and_are_merged_in_the_order_of_names(tmp_path: Path) -> None:
    gatherer, shared = exchange_of(tmp_path, 6), np.zeros(3, F32)
    messages = gatherer.address(((str(i), payload(i, shared)) for i in range(6)), wire.TRAIN, 1)
    for index, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"m{index}"
    born: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def network(index: int) -> wire.Update:
        groups: wire.Groups = {"weights": {"w": np.full(10_000, index, F32)}, "statistics": {}}
        facts: wire.Options = {"images": 1, "batches": 1}
        return wire.Update(str(index), "", groups, {}, facts, round=1, run_key="run")

    def reply(index: int) -> Message:
        content = wire.encode_update(network(index), "float32")
        born.append(weakref.ref(content))
        return Message(content, reply_to=messages[index])

    def replies() -> Iterator[Message]:
        for index in reversed(range(6)):
            gc.collect()
            alive.append(sum(reference() is not None for reference in born))
            yield reply(index)

    found = gatherer.check(paired(messages, replies(), 60), ReplySchema.like(network(0).groups), 1)
    assert alive == [0, 1, 1, 1, 1, 1]  # the one that was checked last
    assert list(found.updates) == list(found.bytes_up) == [str(i) for i in range(6)]
    for name, kept in found.updates.items():
        values = kept.groups["weights"]["w"]
        assert isinstance(values, np.memmap) and (values == float(name)).all()
