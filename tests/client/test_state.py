"""Does a site remember the right round, and survive what happens to its disk?"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from client.state import load_state, save_state


def state(value: float) -> dict[str, np.ndarray]:
    return {"adam/step": np.full(2, value, np.float32), "t": np.asfortranarray(np.eye(3))[:, :2] * value}


def test_the_newest_state_before_a_round_is_taken(tmp_path: Path) -> None:
    for number in (1, 2, 5):
        save_state(tmp_path, "run", number, state(number))
    assert load_state(tmp_path, "run", 1) == {}
    for before, expected in ((2, 1), (3, 2), (5, 2), (6, 5), (99, 5)):
        found = load_state(tmp_path, "run", before)
        np.testing.assert_array_equal(found["adam/step"], state(expected)["adam/step"])
        np.testing.assert_array_equal(found["t"], state(expected)["t"])


def test_runs_do_not_see_each_other(tmp_path: Path) -> None:
    save_state(tmp_path, "one", 1, state(1))
    assert load_state(tmp_path, "two", 5) == {}


def test_a_round_that_is_repeated_replaces_its_state(tmp_path: Path) -> None:
    save_state(tmp_path, "run", 1, state(1))
    save_state(tmp_path, "run", 1, state(8))
    assert load_state(tmp_path, "run", 2)["adam/step"][0] == 8


def test_old_rounds_go_on_request_by_number_and_not_by_letter(tmp_path: Path) -> None:
    for number in (9998, 9999, 10000):
        save_state(tmp_path, "run", number, state(number), keep=2)
    names = {path.stem for path in tmp_path.rglob("*.safetensors")}
    assert names == {"round-9999", "round-10000"}
    assert load_state(tmp_path, "run", 10001)["adam/step"][0] == 10000


def test_a_damaged_file_costs_the_memory_and_not_the_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_state(tmp_path, "run", 1, state(1))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING, logger="client"):
        logging.getLogger("client").propagate = True
        assert load_state(tmp_path, "run", 2) == {}
    assert "starting this round without it" in caplog.text


def test_nothing_to_remember_writes_nothing(tmp_path: Path) -> None:
    save_state(tmp_path, "run", 1, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["..", "../../up", "/etc/x", "", ".", "a\0b", "k" * 5000])
def test_the_servers_key_never_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    inside = tmp_path / "state"
    save_state(inside, key, 1, state(1))
    (file,) = tmp_path.rglob("*.safetensors")
    assert file.parent.parent == inside / "runs" and file.parent.name not in (".", "..", "")
    assert load_state(inside, key, 2)["adam/step"][0] == 1
