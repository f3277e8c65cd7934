"""Does any command open a label file of a site that gives none? The interpreter reports every file that is opened."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from client.__main__ import client_main
from common.data.manifest import read_partition, read_shard, write_manifest, write_partition
from partitions.__main__ import partitions_main
from server.simulate import check_run
from tests.support.federation import network_config
from tests.support.replicas import put_label, put_picture

pytestmark = pytest.mark.usefixtures("narrow")

_watched: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | Path):
        _watched[-1].append(str(arguments[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Collect the paths of all files that are opened meanwhile, by whatever library."""
    if not hasattr(sys, "_labels_watched"):  # a hook cannot be taken back: one for the process
        sys.addaudithook(_note)
        sys._labels_watched = True  # type: ignore[attr-defined]
    _watched.append([])
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


@pytest.fixture
def repaired(scenes: Path, tmp_path: Path) -> Path:
    """The sites' manifests name labels, and the data set repairs sizes: sizes then are the labels'."""
    folder = tmp_path / "shards"
    folder.mkdir()
    partition = read_partition(scenes)
    for name in (*partition.sites, *partition.evaluation):
        write_manifest(folder / f"{name}.jsonl", list(read_shard(scenes / f"{name}.jsonl").entries))
    write_partition(folder, replace(partition, settings={"repair_sizes": True}))
    return folder


def labels_in(folder: Path, *manifests: str) -> set[str]:
    lines = [line for name in manifests for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return {str(json.loads(line).get("label")) for line in lines}


def touched(opened: list[str], labels: set[str]) -> list[str]:
    return [path for path in opened if any(path.endswith(label) for label in labels)]


def test_the_hook_sees_labels_that_are_opened(repaired: Path, tmp_path: Path) -> None:
    labels = labels_in(repaired, "site-0")
    with opened_files() as opened:
        check_run(network_config(repaired, tmp_path, task="supervised"))
    assert len(set(touched(opened, labels))) == len(labels)


@pytest.mark.parametrize("task", ["adaptation", "student", "unsupervised"])
def test_a_site_that_asks_whether_it_is_ready_opens_no_label(
    repaired: Path, tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--shard",
        repaired / "site-0.jsonl",
        "--device",
        "cpu",
        "--cache",
        tmp_path,
        "--set",
        f"task={task}",
    ]
    words += ["--set", "transforms.crop=none", "--weights", "random"]
    with opened_files() as opened:
        client_main(["check", *map(str, words)])
    assert not touched(opened, labels_in(repaired, "site-0"))
    assert sum(path.endswith((".jpg", ".png")) for path in opened) >= 10, "its images were looked at"
    assert "images" in capsys.readouterr().out


def test_the_questions_before_a_run_open_no_label_of_a_site(repaired: Path, tmp_path: Path) -> None:
    settings = {
        "task": "adaptation",
        "style__transfer": "none",
        "eval__where": "none",
        "transforms__crop": "none",
    }
    with opened_files() as opened:
        check_run(network_config(repaired, tmp_path, source__shard="eval.jsonl", **settings))
    assert not touched(opened, labels_in(repaired, "site-0", "site-1", "site-2", "site-3"))
    assert touched(opened, labels_in(repaired, "eval")), "those of the source are the server's"


def test_sites_whose_images_make_no_batch_are_told_so_whatever_size_their_labels_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        put_picture(tmp_path / f"gta5/images/{number:05d}.png", (64, 96) if number == 2 else (64, 80))
        put_label(tmp_path / f"gta5/labels/{number:05d}.png", [7, 18])
    partitions = ["gta5", "--root", str(tmp_path / "gta5"), "--out", str(tmp_path / "o")]
    assert partitions_main(partitions) == 0
    words = ["--shard", str(tmp_path / "o/site-0.jsonl"), "--device", "cpu"]
    words += ["--set", "task=adaptation", "--set", "transforms.crop=none"]
    assert client_main(["check", *words]) != 0
    assert "96 x 64 pixels" in capsys.readouterr().out


def test_dividing_without_labels_opens_none_and_counts_no_class(tmp_path: Path) -> None:
    for number in range(4):
        put_picture(tmp_path / f"set/images/{number}.jpg")
        put_label(tmp_path / f"set/masks/{number}.png", [0, 1])
    base = ["folder", "--root", str(tmp_path / "set"), "--images", "images", "--labels", "masks"]
    base += ["--classes", "crackforest", "--by", "iid", "--sites", "2"]
    with opened_files() as opened:
        assert partitions_main([*base, "--no-labels", "--out", str(tmp_path / "o")]) == 0
    assert not [path for path in opened if "/masks/" in path]
    assert read_partition(tmp_path / "o").histogram is None
    with opened_files() as opened:
        assert partitions_main([*base, "--out", str(tmp_path / "open")]) == 0
    assert len({path for path in opened if "/masks/" in path}) == 4
