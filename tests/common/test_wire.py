"""Does everything that travels arrive as it was, and is everything else refused before it can do harm?"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common import wire
from tests.support.local_grid import set_identity

LIMIT = 1 << 20


def groups() -> wire.Groups:
    """Every kind of group, with the types that sites send."""
    random = np.random.default_rng(0)
    return {
        "head": {
            "linear.weight": random.normal(size=(3, 4)).astype(np.float32),
            "bias": np.zeros(3, np.float32),
        },
        "centroids": {
            "centroids": random.normal(size=(5, 3)).astype(np.float32),
            "counts": np.arange(5, dtype=np.int64),
        },
        "shared": {"prototypes": np.asfortranarray(random.normal(size=(2, 3)).astype(np.float32))},
        "sums": {
            "sums": random.normal(size=(5, 3)),
            "counts": np.arange(5),
            "cosines": random.normal(size=5),
        },
        "confusion": {"confusion": np.full((5, 2), 1 << 40, dtype=np.int64)},
    }


def update(**changes: object) -> wire.Update:
    given = {"site": "site-1", "weights_hash": "ab" * 32, "groups": groups()}
    return wire.Update(**{**given, "metrics": {"loss": 0.5}, "facts": {"images": 7, "ok": True}, **changes})  # type: ignore[arg-type]


def message(content: RecordDict) -> Message:
    set_identity()
    return wire.make_message(content, 17, wire.TRAIN, 3, 60.0)


def same(a: wire.Groups, b: wire.Groups) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].keys() == b[name].keys()
        for key, value in a[name].items():
            assert b[name][key].dtype == value.dtype, f"{name}/{key}"
            np.testing.assert_array_equal(b[name][key], value)


def test_an_update_arrives_as_it_was() -> None:
    sent = update()
    got = wire.decode_update(wire.encode_update(sent, "float32"), LIMIT)
    same(sent.groups, got.groups)
    assert (got.site, got.weights_hash, got.metrics, got.facts) == (
        sent.site,
        sent.weights_hash,
        sent.metrics,
        sent.facts,
    )


def test_sums_that_float32_holds_travel_in_it_and_no_others_do() -> None:
    whole = np.arange(100.0)
    for rows, share in ((whole, 0.5), (whole + 1e-9, 1.0)):
        sent = replace(update(), groups={"sums": {"sums": rows}})
        content = wire.encode_update(sent, "float32")
        got = wire.decode_update(content, LIMIT).groups["sums"]["sums"]
        assert wire.group_bytes(content)["sums"] == pytest.approx(share * rows.nbytes, abs=200)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, rows)


def test_a_task_arrives_as_it_was() -> None:
    sent = wire.Task(3, '{"rounds": 3}', "run-1", groups(), {"what": "clusters", "passes": 2})
    sent_message = message(wire.encode_task(sent, "float32"))
    got = wire.decode_task(sent_message)
    same(sent.groups, got.groups)
    assert (got.round, got.settings, got.run_key, got.options) == (3, sent.settings, "run-1", sent.options)
    assert sent_message.metadata.dst_node_id == 17 and sent_message.metadata.message_type == wire.TRAIN


def test_half_precision_halves_heads_and_leaves_statistics_alone() -> None:
    sent = update()
    content = wire.encode_update(sent, "float16")
    got = wire.decode_update(content, LIMIT)
    assert content.array_records["head"]["linear.weight"].dtype == "float16"
    for name in ("head", "centroids", "shared"):
        for key, value in sent.groups[name].items():
            rounded = value.astype(np.float16).astype(np.float32) if value.dtype == np.float32 else value
            np.testing.assert_array_equal(got.groups[name][key], rounded)
            assert got.groups[name][key].dtype == value.dtype
    same(
        {k: sent.groups[k] for k in ("sums", "confusion")}, {k: got.groups[k] for k in ("sums", "confusion")}
    )


def test_decoded_arrays_can_be_written_to() -> None:
    got = wire.decode_update(wire.encode_update(update(), "float32"), LIMIT)
    got.groups["head"]["bias"] += 1


def test_payload_is_what_is_serialised() -> None:
    small = wire.encode_update(update(groups={"head": {"w": np.zeros(1000, np.float32)}}), "float32")
    half = wire.encode_update(update(groups={"head": {"w": np.zeros(1000, np.float32)}}), "float16")
    assert wire.group_bytes(small)["head"] == len(small.array_records["head"]["w"].data)
    assert wire.payload_bytes(small) - wire.payload_bytes(half) == 2000
    assert set(wire.group_bytes(small)) == {"head", "facts", "metrics"}


def raw(data: bytes) -> Array:
    return Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data)


def npy(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


class Bomb:
    """An object that acts when it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return (explode, ())


def explode() -> object:
    Bomb.exploded = True
    return object()


def announced(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """A file whose header promises more than follows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * 16


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npy(np.zeros(LIMIT, np.float32)), "oversized: 41944.* bytes, at most 1048576"),
        (npy(np.zeros(9, np.float32))[:-5], "31 bytes follow where 36 are announced"),
        (npy(np.zeros(9, np.float32)) + b"tail", "40 bytes follow where 36"),
        (announced((1 << 40,)), "cannot be read as an array"),
        (announced((1 << 62, 1 << 62)), "cannot be read as an array"),
        (announced((-1, 2)), "cannot be read as an array"),
        (b"", "cannot be read as an array"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "cannot be read as an array"),
        (b"\x93NUMPY\x07\x07junk", "unknown version"),
        (pickle.dumps(Bomb()), "cannot be read as an array"),
        (npy(np.array([Bomb()], dtype=object)), "type that is not allowed"),
        (npy(np.array(["text"])), "type that is not allowed"),
        (npy(np.zeros(3, np.complex64)), "type that is not allowed"),
        (npy(np.zeros(3, dtype=[("a", "<f4")])), "type that is not allowed"),
    ],
)
def test_arrays_that_are_none_are_refused_and_nothing_is_unpickled(data: bytes, words: str) -> None:
    content = wire.encode_update(update(groups={}), "float32")
    content["head"] = ArrayRecord({"linear.weight": raw(data)})
    with pytest.raises(wire.WireError, match=words) as caught:
        wire.decode_update(content, LIMIT)
    assert "'head/linear.weight'" in str(caught.value)
    assert not Bomb.exploded


def test_a_scalar_and_an_empty_array_are_arrays() -> None:
    sent = {"sums": {"scalar": np.array(2.5), "empty": np.zeros((0, 4))}}
    same(sent, wire.decode_update(wire.encode_update(update(groups=sent), "float32"), LIMIT).groups)


def test_another_version_is_refused_on_both_sides() -> None:
    with pytest.raises(wire.WireError, match="wire version 99, expected 3"):
        wire.decode_update(wire.encode_update(update(wire_version=99), "float32"), LIMIT)
    content = wire.encode_task(wire.Task(1, "{}", "r"), "float32")
    content.config_records["facts"]["wire-version"] = 99
    with pytest.raises(wire.WireError, match="server speaks wire version 99"):
        wire.decode_task(message(content))
    with pytest.raises(wire.WireError, match="server speaks wire version None"):
        wire.decode_task(message(RecordDict()))


def test_a_reply_without_a_name_is_refused() -> None:
    for facts in (ConfigRecord(), ConfigRecord({"site": 3, "wire-version": 3})):
        with pytest.raises(wire.WireError, match="which site"):
            wire.decode_update(RecordDict({"facts": facts}), LIMIT)
        assert wire.site_of(RecordDict({"facts": facts})) is None
    assert wire.site_of(wire.encode_update(update(wire_version=99), "float32")) == "site-1"


def test_facts_that_are_no_scalars_are_dropped() -> None:
    content = wire.encode_update(update(), "float32")
    content.config_records["facts"]["fact.bytes"] = b"\0"
    content.config_records["facts"]["stray"] = 3
    assert wire.decode_update(content, LIMIT).facts == {"images": 7, "ok": True}


# --- what nobody asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "key", "words"),
    [
        ("features", "x", "unexpected group 'features'"),
        ("n" * 999, "x", "unexpected group 'n{40}'$"),
        ("head", "x", r"'head' has other arrays than expected \(x\)"),
        ("head", "y" * 999, r"expected \(y{80}\)$"),
    ],
)
def test_arrays_that_nobody_asked_for_are_refused_unread(
    group: str, key: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wire.encode_update(update(groups={group: {key: np.zeros(3)}}), "float32")
    assert wire.decode_update(content, LIMIT).groups[group][key].shape == (3,)

    def never(*_: object) -> np.ndarray:
        raise AssertionError("an array was read")

    monkeypatch.setattr(wire, "read_array", never)
    with pytest.raises(wire.WireError, match=words):
        wire.decode_update(content, LIMIT, {"head": ["linear.weight", "bias"]})


def test_fewer_arrays_than_expected_are_the_callers_business() -> None:
    content = wire.encode_update(update(groups={"head": {"bias": np.zeros(3)}}), "float32")
    found = wire.decode_update(content, LIMIT, {"head": ["linear.weight", "bias"], "sums": ["sums"]})
    assert list(found.groups) == ["head"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {f"m{i}": 0.0 for i in range(65)}}, "65 metrics, at most 64"),
        ({"facts": {f"f{i}": 0 for i in range(60)}}, "65 facts, at most 64"),  # five are the message's own
        ({"facts": {"k" * 100: 0}}, "a name of 105 characters among its facts"),
        ({"metrics": {"k" * 100: 0.0}}, "a name of 100 characters among its metrics"),
        ({"facts": {"error": "x" * 20_000}}, "'fact.error' among its facts has length 20000"),
        ({"facts": {"list": ["x" * 8_000] * 3}}, "'fact.list' among its facts has length 24000"),
        ({"site": "x" * 20_000}, "'site' among its facts has length 20000"),
    ],
)
def test_facts_and_metrics_have_an_end(changes: dict[str, object], words: str) -> None:
    content = wire.encode_update(update(groups={}, **changes), "float32")
    with pytest.raises(wire.WireError, match=words):
        wire.decode_update(content, LIMIT)


def test_as_many_facts_and_metrics_as_are_allowed_arrive() -> None:
    given = update(
        groups={}, metrics={f"m{i}": 0.0 for i in range(64)}, facts={f"f{i}": 0 for i in range(59)}
    )
    found = wire.decode_update(wire.encode_update(given, "float32"), LIMIT)
    assert len(found.metrics) == 64 and len(found.facts) == 59
