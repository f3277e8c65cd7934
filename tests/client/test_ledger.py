"""Is everything that leaves a site written down, and can its engineer read it?"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message, RecordDict

from client.__main__ import client_main as main
from client.app import app as client_app
from client.ledger import read_egress, record_egress, summarise
from common import wire
from common.errors import UserError
from common.settings.load import load_config
from tests.support.local_grid import set_identity


def write(folder: Path, action: str = "train", number: int = 1, **sizes: int) -> None:
    record_egress(folder, run="r", round_number=number, action=action, sizes=sizes)


def test_lines_say_what_left_and_add_up(tmp_path: Path) -> None:
    write(tmp_path / "s", head=100, facts=20)
    write(tmp_path / "s", "evaluate", 2, confusion=64)
    first, second = read_egress(tmp_path / "s")
    assert first["bytes"] == {"head": 100, "facts": 20} and first["total"] == 120
    assert (first["run"], first["round"], first["action"]) == ("r", 1, "train")
    assert second["action"] == "evaluate" and str(second["time"]) >= str(first["time"])


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next(tmp_path: Path) -> None:
    write(tmp_path, head=1)
    path = tmp_path / "egress.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026-\xc3')
    write(tmp_path, head=2)
    assert [line["total"] for line in read_egress(tmp_path)] == [1, 2]


def test_a_ledger_that_cannot_be_kept_stops_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\); nothing was sent"):
        write(tmp_path, head=1)


def test_the_application_does_not_answer_without_a_ledger(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "clinic").touch()  # a file where the site's folder should be
    set_identity()
    settings = load_config({"model.weights": "random"}).to_json()
    content = wire.encode_task(wire.Task(1, settings, "run"), "float32")
    message = wire.make_message(content, 5, wire.EVALUATE, 1, 60.0)
    message.metadata.__dict__["_message_id"] = "m"
    node: dict[str, bool | float | int | str] = {
        "shard": str(scenes / "site-0.jsonl"),
        "site": "clinic",
        "state": str(tmp_path / "state"),
    }
    context = Context(run_id=42, node_id=5, node_config=node, state=RecordDict(), run_config={})
    reply: Message | Error = client_app(message, context)
    assert isinstance(reply, Message)
    refused = wire.decode_update(reply.content, 1 << 16)
    assert not refused.groups and not refused.metrics and str(tmp_path) not in str(refused.facts)
    assert "nothing was sent" in str(refused.facts["error"])
    node["state"] = str(tmp_path / "other")
    reply = client_app(message, context)
    assert isinstance(reply, Message)
    (line,) = read_egress(tmp_path / "other" / "clinic")
    assert line["total"] == wire.payload_bytes(reply.content)


def test_the_summary_counts_by_action_and_by_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write(tmp_path / "site-0", "train", number, head=1000, centroids=200)
    write(tmp_path / "site-0", "evaluate", 3, confusion=64)
    accounts = summarise(read_egress(tmp_path / "site-0"))
    assert list(accounts) == ["evaluate", "train", "total"]
    assert (accounts["train"].messages, accounts["train"].total) == (3, 3600)
    assert accounts["total"].records == {"head": 3000, "centroids": 600, "confusion": 64}
    assert main(["egress", str(tmp_path / "site-0")]) == 0
    text = capsys.readouterr().out
    assert "3,600" in text and "3,664" in text and "head 3,000, centroids 600, confusion 64" in text


def test_first_and_last_are_times(tmp_path: Path) -> None:
    lines = [{"time": f"2026-01-0{d}", "action": "train", "bytes": {}, "total": 1} for d in (3, 1, 2)]
    account = summarise(lines)["train"]
    assert (account.first, account.last) == ("2026-01-01", "2026-01-03")


def test_a_folder_of_several_sites_shows_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("site-0", "site-1"):
        write(tmp_path / site, head=1)
    assert main(["egress", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "site-0\n" in text and "site-1\n" in text


def test_lines_of_the_ledger_are_json_each(tmp_path: Path) -> None:
    write(tmp_path, head=3)
    (line,) = (tmp_path / "egress.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"time", "run", "round", "action", "bytes", "total"}
