"""What does a run go on from, wherever it was cut off?"""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import checkpoint_path, load_checkpoint
from common.errors import UserError
from server.loop import rounds
from server.loop.run import run
from tests.conftest import ROOT
from tests.support.federation import local_grid, metrics, tiny_config
from tests.support.local_grid import LocalGrid

SITES = 2
SETTINGS: dict[str, Any] = {"preset": "fuss-clean", "local__keep_optimizer": True, "eval__shard": ""}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> list[dict[str, Any]]:
    """The lines of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    return metrics(run(local_grid(SITES), tiny_config(scenes, folder / "run", SITES, **SETTINGS)))


def start(scenes: Path, run_dir: Path, grid: LocalGrid | None = None, **settings: Any) -> Path:
    config = tiny_config(scenes, run_dir, SITES, **(SETTINGS | settings))
    return run(grid or local_grid(SITES), config)


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Tell whether two runs made the same models and say the same of them; settings travel down, and differ."""
    told = [[line | {"seconds": 0, "bytes_down": 0} for line in some] for some in (found, expected)]
    return told[0] == told[1]


class PowerCut(BaseException):
    """Nothing below may catch it."""


@pytest.mark.parametrize("place", ["save_checkpoint", "append_metrics", "prune_checkpoints"])
@pytest.mark.parametrize("cut_round", [2, 3])
def test_no_moment_of_the_end_of_a_round_loses_what_was_acknowledged(
    tmp_path: Path,
    scenes: Path,
    whole: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    cut_round: int,
) -> None:
    real, calls = getattr(rounds, place), []

    def cut(*arguments: Any) -> Any:
        calls.append(place)
        if len(calls) == cut_round:
            raise PowerCut
        return real(*arguments)

    monkeypatch.setattr(rounds, place, cut)
    with pytest.raises(PowerCut):
        start(scenes, tmp_path / "run", checkpoint__keep=2)
    monkeypatch.setattr(rounds, place, real)
    kept = metrics(tmp_path / "run")
    assert same(kept, whole[: len(kept)]) and len(kept) >= cut_round - 1
    for line in kept[-2:]:  # all that the setting keeps
        assert load_checkpoint(checkpoint_path(tmp_path / "run", line["round"])).round == line["round"]
    start(scenes, tmp_path / "run", resume=str(tmp_path / "run"), checkpoint__keep=2)
    assert same(metrics(tmp_path / "run"), whole)


def test_halves_of_files_are_not_there(tmp_path: Path, scenes: Path, whole: list[dict[str, Any]]) -> None:
    run_dir = start(scenes, tmp_path / "run", rounds=2)
    folder = run_dir / "checkpoints"
    half = checkpoint_path(run_dir, 2).read_bytes()[:1000]
    checkpoint_path(run_dir, 3).write_bytes(half)
    (folder / ".round-0003.json.x1y2").write_bytes(b"{")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "mi')
    start(scenes, run_dir, resume=str(run_dir))
    assert same(metrics(run_dir), whole)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_run_that_went_back_never_goes_on_from_its_former_future(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = start(scenes, tmp_path / "run")

    def cut(*_: Any) -> str:
        raise PowerCut

    monkeypatch.setattr(rounds, "keep_checkpoint", cut)
    with pytest.raises(PowerCut):
        start(scenes, run_dir, resume=str(checkpoint_path(run_dir, 1)), local__steps=3)
    assert load_checkpoint(run_dir).round == 1
    assert [line["round"] for line in metrics(run_dir)] == [1]


def test_two_servers_do_not_write_to_one_directory(tmp_path: Path, scenes: Path) -> None:
    script = (
        "import pathlib, sys\nfrom server.run_dir import sole_writer\n"
        "with sole_writer(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another process still writes"):
            start(scenes, tmp_path)
    finally:
        holder.kill()
        holder.wait(30)
    start(scenes, tmp_path, rounds=1)  # however the other one ended


@pytest.mark.parametrize("place", ["append_metrics", "save_checkpoint"])
def test_a_full_disk_ends_the_run_with_a_sentence_and_it_can_go_on(
    tmp_path: Path, scenes: Path, whole: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    real = getattr(rounds, place)
    calls: list[int] = []

    def full(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(rounds, place, full)
    with pytest.raises(UserError, match=r"No space left on device; free some space, then go on with resume="):
        start(scenes, tmp_path / "run")
    assert "the run ends: Cannot write to" in (tmp_path / "run" / "log.txt").read_text()
    start(scenes, tmp_path / "run", resume=str(tmp_path / "run"))
    assert same(metrics(tmp_path / "run"), whole)


def test_whatever_ends_a_run_stands_in_its_log(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bool:
        raise ConnectionResetError("the SuperLink is gone")

    monkeypatch.setattr(rounds, "train_round", broken)
    with pytest.raises(ConnectionResetError):
        start(scenes, tmp_path / "run")
    assert "the SuperLink is gone" in (tmp_path / "run" / "log.txt").read_text()


def test_sites_that_are_all_gone_are_waited_for(
    tmp_path: Path, scenes: Path, whole: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a network that was down: three empty rounds in a second would end the run."""
    grid = local_grid(SITES)
    looks: list[int] = []

    def nodes() -> list[int]:
        looks.append(1)
        away = 3 <= len(looks) < 9
        return [] if away else list(grid.node_configs)

    monkeypatch.setattr(grid, "get_node_ids", nodes)
    run_dir = start(scenes, tmp_path / "run", grid, sites__wait_seconds=60)
    said = (run_dir / "log.txt").read_text()
    assert [line["checkpoint_sha256"] for line in metrics(run_dir)] == [
        line["checkpoint_sha256"] for line in whole
    ]
    assert "has 0 sites of 1 needed" in said
    assert "site site-1 is not connected any more" in said and "site site-1 takes part from now on" in said
