"""Wire format: everything that travels between server and sites.

This is the only file of the project that knows Flower's message types. A `Task` goes to a site, an
`Update` comes back; both are plain Python and numpy, grouped as ``head``, ``centroids``, ``sums`` and so
on. Nothing is ever unpickled: arrays travel in numpy's own format with pickling off, the rest as scalars.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from common.wire_arrays import WireError as WireError
from common.wire_arrays import narrowed, read_array, widened

if TYPE_CHECKING:  # functions import what they build: who only segments images needs no Flower
    from flwr.app import Array, ArrayRecord, Message, RecordDict

WIRE_VERSION = 3  # to be raised by every change that the other side cannot read
_UPDATE = "; install the same release on both sides"

# Flower knows the types train, evaluate and query; what stands behind the dot chooses the handler
HELLO = "query.hello"
SUMS = "query.sums"
STYLE = "query.style"
TRAIN = "train"
EVALUATE = "evaluate"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_CONSISTENCY = "query.secure_consistency"
SECURE_UNMASK = "query.secure_unmask"

Arrays = dict[str, np.ndarray]
Groups = dict[str, Arrays]
Options = dict[str, str | int | float | bool]

# The fact in which a site names the networks that lie on its disk, by hash.
HOLDS = "holds"

_FACTS = "facts"
_SUMS = "sums"
_METRICS = "metrics"
_EXACT_GROUPS = frozenset(
    {"sums", "confusion", "style", "statistics", "teacher-statistics", "pretrained-statistics", "scales"}
)  # statistics keep their precision on the wire, and so do the scales of rounded changes

# Facts, and metrics, that an update may have; the largest number that any site sends is far below.
MOST_ENTRIES = 64
# Characters of a fact; the hashes of the teachers that a site holds need 65 each.
LONGEST_FACT = 1 << 14
_LONGEST_KEY = 64  # names of facts and metrics are words; a longer one would only fill the log


@dataclass(frozen=True)
class Task:
    """What the server asks one site to do.

    ``settings`` is the run configuration (`RunConfig.to_wire`), so that a site needs nothing else.
    """

    round: int
    settings: str
    run_key: str
    groups: Groups = field(default_factory=dict)
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one site answers; ``round`` and ``run_key`` are those of the task: an old answer is known as one."""

    site: str
    weights_hash: str
    groups: Groups = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)
    wire_version: int = WIRE_VERSION
    round: int = 0
    run_key: str = ""


# Arrays by identity and type on the wire, as encoded before; the first of each pair keeps the identity taken.
Encoded = dict[tuple[int, str], "tuple[object, Array]"]


def _encode_group(
    name: str, arrays: Mapping[str, np.ndarray], dtype: str, encoded: Encoded | None = None
) -> ArrayRecord:
    from flwr.app import Array, ArrayRecord

    record = ArrayRecord()
    kind = "float32" if name in _EXACT_GROUPS else dtype
    known: Encoded = {} if encoded is None else encoded
    for key, value in arrays.items():
        if (id(value), kind) not in known:
            array = narrowed(np.asarray(value)) if name == _SUMS else np.asarray(value)
            if array.dtype == np.float32 and kind == "float16":
                array = array.astype(np.float16)
            known[id(value), kind] = (value, Array(np.ascontiguousarray(array)))
        record[key] = known[id(value), kind][1]
    return record


def _refuse_strange(content: RecordDict, expected: Mapping[str, Collection[str]]) -> None:
    """Raise `WireError` for arrays that nobody asked for, before any of them is read."""
    for name, record in content.array_records.items():
        if name not in expected:
            raise WireError(f"unexpected group '{name[:40]}'")
        strange = sorted(key for key in record if key not in expected[name])
        if strange:
            raise WireError(f"'{name}' has other arrays than expected ({', '.join(strange)[:80]})")


def _refuse_endless(kind: str, record: Mapping[str, object]) -> None:
    """Raise `WireError` for more, or longer, entries than a site has any use for."""
    if len(record) > MOST_ENTRIES:
        raise WireError(f"{len(record)} {kind}, at most {MOST_ENTRIES} are expected")
    for key, value in record.items():
        if len(key) > _LONGEST_KEY:
            raise WireError(
                f"a name of {len(key)} characters among its {kind}, at most {_LONGEST_KEY} are expected"
            )
        length = _length(value)
        if length > LONGEST_FACT:
            raise WireError(
                f"'{key}' among its {kind} has length {length}, at most {LONGEST_FACT} is expected"
            )


def _length(value: object) -> int:
    """Return how much of a record an entry takes: its characters, those of all items of a list."""
    if isinstance(value, list):
        return sum(max(_length(item), 1) for item in value)
    return len(value) if isinstance(value, str | bytes) else 0


def _decode_groups(content: RecordDict, limit: int) -> Groups:
    groups: Groups = {}
    for name, record in content.array_records.items():
        widen = widened if name == _SUMS else np.asarray
        groups[name] = {
            key: widen(read_array(array.data, f"array '{name}/{key}'", limit))
            for key, array in record.items()
        }
    return groups


def encode_task(task: Task, dtype: str, encoded: Encoded | None = None) -> RecordDict:
    """Turn a task into Flower records; float32 arrays travel as ``dtype``.

    Tasks that are given the same ``encoded`` share what they have in common: a network that goes to all sites
    is in memory once. Arrays must not change meanwhile.
    """
    from flwr.app import ConfigRecord, RecordDict

    content = RecordDict(
        {name: _encode_group(name, arrays, dtype, encoded) for name, arrays in task.groups.items()}
    )
    content[_FACTS] = ConfigRecord(
        {
            "wire-version": WIRE_VERSION,
            "round": task.round,
            "settings": task.settings,
            "run-key": task.run_key,
            **{f"option.{key}": value for key, value in task.options.items()},
        }
    )
    return content


def decode_task(message: Message) -> Task:
    """Read a task; raises `WireError` where the server speaks another version."""
    facts = message.content.config_records.get(_FACTS)
    if facts is None or facts.get("wire-version") != WIRE_VERSION:
        version = None if facts is None else facts.get("wire-version")
        raise WireError(
            f"the server speaks wire version {version!r}, this site speaks {WIRE_VERSION}{_UPDATE}"
        )
    return Task(
        round=int(facts["round"]),  # type: ignore[arg-type]
        settings=str(facts["settings"]),
        run_key=str(facts["run-key"]),
        groups=_decode_groups(message.content, limit=1 << 31),
        options={
            key.removeprefix("option."): value  # type: ignore[misc]
            for key, value in facts.items()
            if key.startswith("option.")
        },
    )


def encode_update(update: Update, dtype: str) -> RecordDict:
    """Turn an update into Flower records; float32 arrays travel as ``dtype``, statistics as they are."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    content = RecordDict({name: _encode_group(name, arrays, dtype) for name, arrays in update.groups.items()})
    content[_METRICS] = MetricRecord({key: float(value) for key, value in update.metrics.items()})
    content[_FACTS] = ConfigRecord(
        {
            "wire-version": update.wire_version,
            "site": update.site,
            "weights-hash": update.weights_hash,
            "round": update.round,
            "run-key": update.run_key,
            **{f"fact.{key}": value for key, value in update.facts.items()},
        }
    )
    return content


def decode_update(
    content: RecordDict, limit: int, expected: Mapping[str, Collection[str]] | None = None
) -> Update:
    """Read an update whose arrays may have at most ``limit`` bytes each.

    ``expected`` are the arrays that it may hold, by group; without it, any. Raises `WireError` for another wire
    version, missing parts, oversized, truncated or strange arrays, and facts or metrics without end.
    """
    facts = content.config_records.get(_FACTS)
    if facts is None or not isinstance(facts.get("site"), str):
        raise WireError("the reply does not say which site it comes from")
    if (version := facts.get("wire-version")) != WIRE_VERSION:
        raise WireError(f"wire version {repr(version)[:40]}, expected {WIRE_VERSION}{_UPDATE}")
    metrics: Mapping[str, object] = content.metric_records.get(_METRICS) or {}
    _refuse_endless("facts", facts)
    _refuse_endless("metrics", metrics)
    if expected is not None:
        _refuse_strange(content, expected)
    return Update(
        site=str(facts["site"]),
        weights_hash=str(facts.get("weights-hash", "")),
        groups=_decode_groups(content, limit),
        metrics={key: float(value) for key, value in metrics.items() if isinstance(value, int | float)},
        facts={
            key.removeprefix("fact."): value  # type: ignore[misc]
            for key, value in facts.items()
            if key.startswith("fact.") and isinstance(value, str | int | float | bool)
        },
        round=number if type(number := facts.get("round")) is int else -1,  # which no round has
        run_key=str(facts.get("run-key", "")),
    )


def site_of(content: RecordDict) -> str | None:
    """Return the name that a reply gives itself, however broken the rest of it is."""
    facts = content.config_records.get(_FACTS)
    name = facts.get("site") if facts else None
    return name if isinstance(name, str) else None


def group_bytes(content: RecordDict) -> dict[str, int]:
    """Return the payload of each record in bytes, as it is serialised."""
    sizes = {key: sum(len(each.data) for each in rec.values()) for key, rec in content.array_records.items()}
    scalars = [*content.config_records.items(), *content.metric_records.items()]
    return sizes | {name: len(record.deflate()) for name, record in scalars}


def payload_bytes(content: RecordDict) -> int:
    """Return the payload of a message in bytes: arrays, settings and metrics."""
    return sum(group_bytes(content).values())


def make_message(content: RecordDict, node_id: int, action: str, round_number: int, ttl: float) -> Message:
    """Address a task; a site that is still busy when ``ttl`` seconds are over never sees it (no stale work)."""
    from flwr.app import Message

    return Message(content, dst_node_id=node_id, message_type=action, group_id=str(round_number), ttl=ttl)


def crash_reply(request: Message, reason: str, code: str = "CLIENT_APP_CRASHED") -> Message:
    """Answer a message in the place of a process that died over it, as Flower itself does after a minute."""
    from flwr.app import Error, Message
    from flwr.common.constant import ErrorCode

    return Message(Error(code=getattr(ErrorCode, code), reason=reason), reply_to=request)


def refusal_reply(request: Message, site: str, reason: str) -> Message:
    """Answer a message in the place of an application that a site does not run."""
    from flwr.app import Message

    update = Update(site=site, weights_hash="", facts={"error": reason})
    with suppress(WireError):  # of another release: the reason can be read all the same
        task = decode_task(request)
        update = replace(update, round=task.round, run_key=task.run_key)
    return Message(encode_update(update, "float32"), reply_to=request)


def lost_reply(request: Message, reason: str) -> Message:
    """Answer a message in the place of an answer that never came whole, as Flower itself does after three minutes."""
    return crash_reply(request, reason, "MESSAGE_UNAVAILABLE")


def array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return arrays as Flower's record, for callers that expect Flower's own types."""
    return _encode_group("head", arrays, "float32")
