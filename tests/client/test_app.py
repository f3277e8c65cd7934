"""Does a site answer whatever happens, and keep the names of its files to itself?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from client.app import prepare_device
from client.reasons import public_reason
from client.site import SiteConfig
from common import wire
from common.errors import UserError
from common.settings.load import load_config
from common.system.device import choose_device
from tests.support.local_grid import set_identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The image /data/John Smith/scan 1.png is damaged; replace it.",
            "The image (path) is damaged; replace it.",
        ),
        ("/data/patient.7/John Smith.dcm is no picture", "(path) is no picture"),
        ("Cannot write /srv/state/x: No space left on device", "Cannot write (path) No space left on device"),
        (
            "x.jsonl line 3 names the image 'John Smith.png' again",
            "(file) line 3 names the image (file) again",
        ),
        ("[Errno 2] No such file: '/secret/Jane Doe/x.bin'", "[Errno 2] No such file: '(path)'"),
        ("the image '../Jane/x.png' leaves", "the image '(path)' leaves"),
        (r"C:\Users\Jane\x.png is gone", "(path) is gone"),
        ("IMG_0017.JPG is truncated", "(file) is truncated"),
        ("it lacks 'blocks.0.norm'; set model.depth", "it lacks 'blocks.0.norm'; set model.depth"),
        ("site-0 holds 3 images, set local.batch to 3", "site-0 holds 3 images, set local.batch to 3"),
    ],
)
def test_paths_and_file_names_never_leave_and_settings_may(text: str, expected: str) -> None:
    assert public_reason(UserError(text)) == expected


def test_known_paths_go_whatever_they_look_like() -> None:
    text = public_reason(
        UserError("Cannot open /srv/Jane Doe and sons today"), [Path("/srv/Jane Doe and sons")]
    )
    assert "Jane" not in text and "sons" not in text and text.endswith("today")


def test_the_gpu_is_made_ready_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "common.system.device.set_deterministic", lambda wanted: done.append(("bits", wanted))
    )
    monkeypatch.setattr("common.system.device.limit_memory", lambda *given: done.append(given))
    site = SiteConfig(name="a", shards=(), cache_dir=Path(), state_dir=Path(), gpu_share=0.5)
    prepare_device(site, load_config({"deterministic": True}))
    assert done == [("bits", True), (choose_device("auto"), 0.5)]  # a limit starts CUDA, so it comes second


def test_a_wrong_device_is_an_answer_before_features_are_made() -> None:
    found = ask({"shard": "/nowhere/a.jsonl", "site": "a", "device": "gpu"})
    assert str(found.facts["error"]).startswith("Device 'gpu' is unknown")


def test_other_errors_are_named_and_long_ones_cut() -> None:
    assert public_reason(KeyError("x")) == "KeyError: 'x'"
    assert public_reason(ValueError()) == "ValueError: "
    assert len(public_reason(RuntimeError("a" * 9999))) == 400


def ask(node: dict[str, object], action: str = wire.TRAIN, **facts: Any) -> wire.Update:
    set_identity()
    content = wire.encode_task(
        wire.Task(1, load_config({"model.weights": "random"}).to_json(), "run"), "float32"
    )
    for key, value in facts.items():
        content.config_records["facts"][key.replace("_", "-")] = value
    message = wire.make_message(content, 5, action, 1, 60.0)
    message.metadata.__dict__["_message_id"] = "m"
    context = Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config={})  # type: ignore[arg-type]
    reply = client_app(message, context)
    assert isinstance(reply, Message)
    return wire.decode_update(reply.content, 1 << 20)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"wire_version": 9}, "WireError: the server speaks wire version 9, this site speaks 3"),
        ({"settings": '{"rounds": "x"}'}, "Setting 'rounds' is 'x'"),
        ({"settings": "no json"}, "not JSON"),
        ({"settings": "[1]"}, "not JSON"),
        ({}, "manifest: its manifest does not exist"),
    ],
)
def test_a_failure_is_an_answer_with_a_reason(tmp_path: Path, facts: dict[str, Any], words: str) -> None:
    (tmp_path / "Jane Doe").mkdir()
    node: dict[str, object] = {"shard": str(tmp_path / "Jane Doe" / "gone.jsonl"), "site": "clinic"}
    node["cache"] = str(tmp_path / "cache")
    update = ask(node, **facts)
    assert update.site == "clinic" and update.groups == {}
    assert words in str(update.facts["error"])
    assert "Jane" not in str(update.facts["error"]) and "gone" not in str(update.facts["error"])


def test_a_site_without_a_shard_still_says_so() -> None:
    update = ask({"partition-id": 3}, wire.HELLO)
    assert update.site == "site-3" and "does not know its shard" in str(update.facts["error"])


def test_a_full_gpu_is_answered_with_what_to_lower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def crowded(*given: object) -> wire.Update:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nDetails")

    monkeypatch.setattr("client.work.unsupervised.UnsupervisedSite.train", crowded)
    found = ask({"shard": str(tmp_path / "site-1.jsonl"), "cache": str(tmp_path / "cache"), "device": "cpu"})
    assert found.facts["error"] == (
        "The GPU has no room for this work (CUDA out of memory. Tried to allocate 2 GiB.); lower local.batch "
        "(8), raise this site's gpu-share, or set this site's device to cpu."
    )
