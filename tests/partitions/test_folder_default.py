"""Tests `partitions folder` on a bare folder: images dealt out, odd files, masks that are no images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_shard
from common.data.images import read_image
from common.data.manifest import read_shard, read_sites
from partitions.__main__ import partitions_main as main
from tests.support.odd_images import photo, write_pillow, write_refused


def test_pictures_without_domains_are_dealt_out_evenly(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(8):
        Image.fromarray(np.full((20, 30, 3), index * 30, np.uint8)).save(pictures / f"{index}.png")
    main(["folder", "--root", str(pictures), "--sites", "2", "--out", str(tmp_path / "shards")])
    described = json.loads((tmp_path / "shards" / "partition.json").read_text())
    assert described["rule"] == "iid"
    counts = [len((tmp_path / "shards" / f"site-{i}.jsonl").read_text().splitlines()) for i in range(2)]
    assert counts == [4, 4]


def test_odd_images_come_through_a_manifest_and_the_rest_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "odd", tmp_path / "shards"
    folder.mkdir()
    taken, refused = write_pillow(folder), write_refused(folder, tmp_path / "outside")
    words = ["folder", "--root", str(folder), "--out", str(out), "--by", "iid", "--sites", "2"]
    with pytest.raises(SystemExit):
        main(words)
    assert not out.exists()
    main([*words, "--skip-unreadable"])
    said = capsys.readouterr().out
    for name in refused:
        assert name in said
    shards = read_sites(out)
    assert sorted(entry.image for shard in shards for entry in shard.entries) == sorted(taken)
    assert not any(check_shard(shard, labels=False) for shard in shards)


def test_a_window_is_recorded_and_obeyed(tmp_path: Path) -> None:
    folder, out = tmp_path / "deep", tmp_path / "shards"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(photo(index)[..., 0].astype(np.uint16) * 16).save(folder / f"{index}.png")
    main(["folder", "--root", str(folder), "--out", str(out), "--sites", "1", "--window", "0,8190"])
    shard = read_shard(out / "site-0.jsonl")
    assert shard.reading.window == (0, 8190)
    assert abs(int(read_image(shard.image_path(0), shard.reading).max()) - 127) <= 1
    assert json.loads((out / "partition.json").read_text())["settings"]["window"] == [0, 8190]


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 255)])
def test_masks_that_were_found_become_labels_for_scoring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[int, ...]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(photo(index)).save(folder / f"{index}.jpg")
        if index:
            ids = np.full((36, 48), values[0], np.uint8)
            for place, value in enumerate(values):
                ids[12 * place :] = value
            Image.fromarray(ids).save(folder / f"{index}_mask.png")
    words = ["folder", "--root", str(folder), "--sites", "1"]
    main([*words, "--out", str(tmp_path / "plain")])
    assert "score by them with --labels auto" in capsys.readouterr().out
    main([*words, "--labels", "auto", "--out", str(tmp_path / "scored")])
    shard = read_shard(tmp_path / "scored" / "train_eval.jsonl")
    assert [entry.label for entry in shard.entries] == [f"{index}_mask.png" for index in (1, 2, 3)]
    assert shard.classes is not None and shard.classes.names == tuple(f"value {value}" for value in values)
    assert not check_shard(shard, labels=True)
    site = read_shard(tmp_path / "scored" / "site-0.jsonl")
    assert len(site) == 4 and not any(entry.label for entry in site.entries)


def test_masks_of_another_size_are_refused_as_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(photo()).save(folder / "a.jpg")
    Image.fromarray(np.zeros((30, 48), np.uint8)).save(folder / "a_mask.png")
    with pytest.raises(SystemExit):
        main(
            [
                "folder",
                "--root",
                str(folder),
                "--sites",
                "1",
                "--labels",
                "auto",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert "48 x 36 but its label map a_mask.png is 48 x 30" in capsys.readouterr().err
