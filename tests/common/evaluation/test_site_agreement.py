"""Tests the warnings of sites that look like no other, and of masks that follow places or sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.manifest import read_sites
from common.evaluation.site_agreement import place_share, sample, shares_of, warn_after, warn_before
from partitions.__main__ import partitions_main
from tests.support.odd_images import photo
from tests.support.unlike_sites import unlike_sites


def _content(seed: int, images: int = 8, clusters: int = 6) -> np.ndarray:
    """Return maps of blocks at random places."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, clusters, (images, 4, 6)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


def test_maps_of_content_are_fine() -> None:
    assert warn_after({"a": _content(0), "b": _content(1)}, 6) == []


def test_one_fixed_map_is_a_warning() -> None:
    fixed = np.repeat(_content(0, 1), 8, axis=0)
    fixed[3, :2] = 5
    assert place_share(fixed, 6) > 0.9
    (found,) = warn_after({"a": fixed, "b": _content(1)}, 6)
    assert found.kind == "place" and found.sites == ("a",) and "model.backbone" in found.text


def test_the_share_at_a_place_is_that_of_other_images() -> None:
    """Two images that never agree: either's own cluster is half of the counts, but none of the other's."""
    maps = np.stack([np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)])
    assert place_share(maps, 2) == 0.0


def test_one_cluster_that_eats_a_site_is_a_warning() -> None:
    eaten = np.full((8, 16, 24), 2, np.uint8)
    eaten[0, :4] = 1
    found = warn_after({"a": eaten, "b": _content(1)}, 6)[0]
    assert (
        found.kind == "eaten"
        and found.sites == ("a",)
        and "cluster 2" in found.text
        and shares_of(eaten, 6)[2] > 0.9
    )


def test_sites_that_share_no_cluster_are_a_warning() -> None:
    (found,) = warn_after({"a": _content(0, clusters=3), "b": _content(1, clusters=3) + 3}, 6)
    assert found.kind == "apart" and found.sites == ("a", "b")


def test_a_sample_is_spread_and_never_longer_than_wanted() -> None:
    assert sample(0) == [] and sample(1) == [0] and sample(100, 3) == [0, 50, 99]


@pytest.mark.parametrize("fixed", [True, False])
def test_images_of_a_fixed_camera_are_a_warning_before_training(tmp_path: Path, fixed: bool) -> None:
    for site in ("a", "b"):
        (tmp_path / "pictures" / site).mkdir(parents=True)
        for index in range(6):
            seed = (1 if site == "a" else 2) if fixed else index + (10 if site == "a" else 20)
            image = photo(seed)
            image[:3, :3] = 40 * index
            Image.fromarray(image).save(tmp_path / "pictures" / site / f"{index}.png")
    partitions_main(["folder", "--root", str(tmp_path / "pictures"), "--out", str(tmp_path / "shards")])
    kinds = [one.kind for one in warn_before(read_sites(tmp_path / "shards"))]
    assert kinds.count("still") == (2 if fixed else 0)


@pytest.mark.shared
def test_three_unlike_sites_are_named_before_training(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = unlike_sites(shared_data, tmp_path)
    assert "site-0, site-1, site-2 look like no other site" in capsys.readouterr().out
    (found,) = warn_before(read_sites(shards))
    assert found.kind == "unlike" and found.sites == ("site-0", "site-1", "site-2")


@pytest.mark.shared
def test_drives_of_one_car_are_no_warning(shared_data: Path, tmp_path: Path) -> None:
    words = ["camvid", "--root", str(shared_data / "camvid"), "--by", "domain", "--quick"]
    partitions_main([*words, "--out", str(tmp_path / "shards")])
    assert warn_before(read_sites(tmp_path / "shards")) == []
