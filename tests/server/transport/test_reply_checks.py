"""Does every reply that could harm the aggregate stay out, with its reason, and every good one come in?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from common import wire
from server.transport.reply_checks import SLACK_BYTES, ReplySchema, read_update

HASH = "ab" * 32
F32 = np.float32


def good() -> wire.Groups:
    return {
        "head": {"linear.weight": np.ones((2, 3), F32), "linear.bias": np.zeros(2, F32)},
        "centroids": {"centroids": np.ones((4, 2), F32), "counts": np.arange(4)},
        "sums": {"sums": np.full((4, 2), 0.5), "counts": np.full(4, 3), "cosines": np.ones(4)},
    }


def reply(groups: wire.Groups, **changes: Any) -> RecordDict:
    given: dict[str, Any] = {"site": "a", "weights_hash": HASH, "groups": groups}
    given |= {"metrics": {"loss": 1.0}, "facts": {"images": 5, "batches": 2}}
    return wire.encode_update(wire.Update(**(given | changes)), "float32")


def changed(group: str, key: str, value: Any) -> wire.Groups:
    groups = good()
    groups[group] = groups[group] | {key: np.asarray(value)}
    return groups


EXPECTED = ReplySchema.like(good(), HASH)


def test_a_good_reply_comes_in_in_either_precision() -> None:
    update, reason = read_update(reply(good()), EXPECTED)
    assert reason is None and update is not None and update.facts["images"] == 5
    half = wire.encode_update(wire.Update("a", HASH, good(), {}, {"images": 5, "batches": 2}), "float16")
    assert read_update(half, EXPECTED)[1] is None


def test_the_limit_leaves_room_for_what_is_expected_and_not_for_more() -> None:
    assert ReplySchema({"head": {"w": (1000, 10)}}).limit_bytes == 8 * 10_000 + SLACK_BYTES
    assert ReplySchema({}).limit_bytes == SLACK_BYTES
    big = {"head": {"w": np.zeros((1000, 100), F32)}}
    assert "oversized" in str(read_update(reply(big), ReplySchema({"head": {"w": (10, 10)}}))[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (reply(changed("head", "linear.bias", np.array([0, np.nan], F32))), "'head/linear.bias' holds NaN"),
        (reply(changed("centroids", "centroids", np.full((4, 2), np.inf, F32))), "holds NaN or infinity"),
        (reply(changed("head", "linear.bias", np.zeros(3, F32))), "shape (3,), expected (2,)"),
        (reply(changed("head", "linear.bias", np.zeros(2))), "type float64, expected float32"),
        (reply(changed("centroids", "centroids", np.ones((4, 2), int))), "type int64, expected float32"),
        (reply(changed("head", "extra", np.zeros(2, F32))), "'head' has other arrays than expected (extra)"),
        (reply({k: v for k, v in good().items() if k != "sums"}), "'sums' is missing"),
        (reply(good() | {"features": {"x": np.zeros(2, F32)}}), "unexpected group 'features'"),
        (reply(changed("centroids", "counts", [-1, 0, 0, 0])), "something else than counts"),
        (reply(changed("centroids", "counts", np.ones(4, F32))), "something else than counts"),
        (reply(changed("sums", "sums", np.full((4, 2), 9.0))), "longer than as many unit codes can be"),
        (reply(changed("sums", "counts", [0, 3, 3, 3])), "longer than as many unit codes can be"),
        (
            reply(good(), weights_hash="cd" * 32),
            "other backbone weights (cdcdcdcdcdcd instead of abababababab)",
        ),
        (reply(good(), facts={"error": "no disk"}), "it reported: no disk"),
        (reply(good(), facts={"images": 5}), "its number of batches is 'None'"),
        (reply(good(), facts={"images": -5, "batches": 1}), "its number of images is '-5'"),
        (reply(good(), facts={"images": "many", "batches": 1}), "its number of images is 'many'"),
        (reply(good(), facts={"images": True, "batches": 1}), "its number of images is 'True'"),
        (reply(good(), facts={"images": 1 << 60, "batches": 1}), "its number of images"),
        (reply(good(), metrics={"loss": float("nan")}), "its metric 'loss' is nan"),
        (reply(good(), wire_version=9), "wire version 9"),
        (RecordDict(), "which site"),
        (None, "unreadable (AttributeError)"),
    ],
)
def test_a_bad_reply_stays_out_with_a_reason(content: object, words: str) -> None:
    update, reason = read_update(content, EXPECTED)
    assert update is None and words in str(reason), reason


def test_a_confusion_has_to_count() -> None:
    expected = ReplySchema({"confusion": {"confusion": (2, 2)}})
    assert read_update(reply({"confusion": {"confusion": np.eye(2, dtype=int)}}), expected)[1] is None
    for wrong in (np.eye(2), -np.eye(2, dtype=int)):
        assert "something else" in str(read_update(reply({"confusion": {"confusion": wrong}}), expected)[1])


@pytest.mark.parametrize("name", ["shares", "adjacency", "overlaps"])
def test_tables_of_starts_have_to_count(name: str) -> None:
    for value, refused in ((np.array([0, 3]), False), (np.array([-1, 3]), True), (np.array([0.5, 3]), True)):
        groups = changed("sums", name, value)
        reason = read_update(reply(groups), ReplySchema.like(groups, HASH))[1]
        assert (reason == f"'sums/{name}' holds something else than counts") is refused


def test_unit_codes_that_all_agree_are_not_too_long() -> None:
    unit = np.array([0.6, 0.8])
    sums = {"sums": {"sums": np.outer([1000, 0], unit), "counts": np.array([1000, 0]), "cosines": np.ones(2)}}
    assert read_update(reply(sums), ReplySchema.like(sums))[1] is None


def test_without_a_hash_any_backbone_will_do() -> None:
    assert read_update(reply(good(), weights_hash="cd" * 32), ReplySchema.like(good()))[1] is None


# --- whole networks -------------------------------------------------------------------------------------

NETWORK: wire.Groups = {
    "weights": {"conv.weight": np.ones((2, 3), F32)},
    "statistics": {"norm.running_mean": np.full(2, -1, F32), "norm.running_var": np.zeros(2, F32)},
}


def test_a_good_network_comes_in() -> None:
    assert read_update(reply(NETWORK), ReplySchema.like(NETWORK, HASH))[1] is None


@pytest.mark.parametrize(
    ("group", "key", "value", "words"),
    [
        (
            "weights",
            "conv.weight",
            np.ones((2, 3)),
            "'weights/conv.weight' has type float64, expected float32",
        ),
        ("statistics", "norm.running_mean", np.zeros(2, int), "has type int64, expected float32"),
        (
            "statistics",
            "norm.running_var",
            np.array([0, -1e-9], F32),
            "'statistics/norm.running_var' holds a neg",
        ),
        ("statistics", "norm.running_var", np.array([0, np.inf], F32), "holds NaN or infinity"),
        ("statistics", "norm.num_batches_tracked", np.zeros(2, F32), "other arrays than expected"),
        ("weights", "conv.weight", np.ones((3, 2), F32), "shape (3, 2), expected (2, 3)"),
    ],
)
def test_a_network_that_would_spoil_the_mean_stays_out(
    group: str, key: str, value: np.ndarray, words: str
) -> None:
    groups = NETWORK | {group: NETWORK[group] | {key: value}}
    update, reason = read_update(reply(groups), ReplySchema.like(NETWORK, HASH))
    assert update is None and words in str(reason)


@pytest.mark.parametrize(
    "facts", [{"images": 0, "batches": 1}, {"images": 1, "batches": 0}, {"images": 1}, {}]
)
def test_a_network_needs_a_weight(facts: dict[str, int]) -> None:
    """Alone in its cluster, a site of weight 0 would have no mean."""
    update, reason = read_update(reply(NETWORK, facts=facts), ReplySchema.like(NETWORK, HASH))
    assert update is None and "expected a count" in str(reason)
