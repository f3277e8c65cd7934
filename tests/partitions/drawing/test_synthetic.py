"""Are the drawn scenes deterministic, complete, labelled right, and honestly different between sites?"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from common.data.check import check_shard
from common.data.classes import load_table
from common.data.images import read_image, read_label
from common.data.manifest import Shard, read_partition, read_shard, read_sites
from partitions.drawing import canvas
from partitions.drawing.conditions import site_condition
from tests.support.scenes import write_synthetic

SYNTHETIC = load_table("synthetic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("scenes") / "s")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _histogram(shard: Shard) -> npt.NDArray[np.float64]:
    counts = np.zeros(SYNTHETIC.num_classes)
    for i in range(len(shard)):
        path = shard.label_path(i)
        assert path is not None
        counts += np.bincount(read_label(path, SYNTHETIC).ravel(), minlength=256)[: SYNTHETIC.num_classes]
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def test_the_folder_is_complete_and_sound(folder: Path) -> None:
    sites = read_sites(folder)
    unseen = read_shard(folder / "eval.jsonl")
    assert [len(shard) for shard in sites] == [12] * 4 and len(unseen) == 8
    for shard in (*sites, unseen):
        assert shard.labelled and shard.classes == SYNTHETIC
        assert check_shard(shard, labels=True) == []
    assert read_image(sites[0].image_path(0)).shape == (96, 128, 3)
    assert read_partition(folder).evaluation == {"eval": 8}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def make(name: str, seed: int) -> str:
        return _digest(write_synthetic(tmp_path / name, 2, 2, 1, (48, 64), seed))

    assert make("a", 5) == make("b", 5) != make("c", 6)


def test_a_larger_set_holds_the_smaller_one(tmp_path: Path) -> None:
    small = write_synthetic(tmp_path / "small", 2, 2, 0, (48, 64))
    large = write_synthetic(tmp_path / "large", 3, 4, 0, (48, 64))
    for path in (small / "data").rglob("*.jpg"):
        assert (large / path.relative_to(small)).read_bytes() == path.read_bytes()


def test_every_class_is_drawn_and_sites_differ_in_class_mix_and_light(folder: Path) -> None:
    sites = read_sites(folder)
    mixes = np.stack([_histogram(shard) for shard in sites])
    assert (mixes.max(axis=0) > 0.003).all(), "a class hardly appears anywhere"
    means = np.array([np.mean([read_image(s.image_path(i)).mean() for i in range(4)]) for s in sites])
    for a in range(4):
        for b in range(a):
            assert np.abs(mixes[a] - mixes[b]).sum() / 2 > 0.05
            assert abs(means[a] - means[b]) > 3


def test_the_unseen_drive_is_made_in_conditions_that_no_site_holds(folder: Path) -> None:
    held = {entry.domain for shard in read_sites(folder) for entry in shard.entries}
    unseen = {entry.domain for entry in read_shard(folder / "eval.jsonl").entries}
    assert len(held) == 4 and len(unseen) > 2 and not held & unseen


def test_local_colour_and_texture_tell_the_classes_apart(folder: Path) -> None:
    """Nearest class mean in a 6-number description beats the commonest class by far, within a site."""
    for shard in read_sites(folder)[:2]:
        features, labels = [], []
        for i in range(6):
            picture = read_image(shard.image_path(i)).astype(np.float32) / 255
            label = np.asarray(Image.open(shard.root / str(shard.entries[i].label)))
            for y in range(0, 96, 8):
                for x in range(0, 128, 8):
                    patch = label[y : y + 8, x : x + 8]
                    if (patch == patch[0, 0]).mean() > 0.9:
                        pixels = picture[y : y + 8, x : x + 8].reshape(-1, 3)
                        features.append(np.concatenate([pixels.mean(0), 3 * pixels.std(0)]))
                        labels.append(patch[0, 0])
        x_all, y_all = np.stack(features), np.asarray(labels)
        train = np.arange(len(y_all)) % 2 == 0
        kinds = np.unique(y_all[train])
        means = np.stack([x_all[train & (y_all == k)].mean(0) for k in kinds])
        guess = kinds[((x_all[:, None] - means) ** 2).sum(-1).argmin(1)]
        accuracy = (guess == y_all)[~train].mean()
        assert accuracy > 0.7 > np.bincount(y_all).max() / len(y_all)


def test_tiny_sets_take_less_than_a_few_seconds(tmp_path: Path) -> None:
    start = time.process_time()
    write_synthetic(tmp_path / "s", sites=3, images_per_site=6, eval_images=4)
    assert time.process_time() - start < 3


def test_twenty_sites_are_twenty_different_drives() -> None:
    rng = np.random.default_rng(0)
    assert len({site_condition(site, rng).name for site in range(20)}) == 20


def test_the_brush_and_the_class_table_mean_the_same() -> None:
    for name in SYNTHETIC.names:
        assert getattr(canvas, name.upper()) == SYNTHETIC.names.index(name)
