"""Does a folder of pictures become label maps that mean what the legend says, or nothing at all?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.classes import load_table
from common.errors import UserError
from common.evaluation.clusters import backbone_maps
from common.evaluation.overlay import hex_colour
from common.models.backbone import load_backbone, prepare_image
from common.models.segmenter import Segmenter
from common.settings.unsupervised import Model
from server.commands.inputs import find_pictures
from server.commands.segment import segment
from tests.support.checkpoints import write_checkpoint
from tests.support.odd_images import write_pillow, write_refused

SYNTHETIC = load_table("synthetic")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("named"), SYNTHETIC, [3, -1, 0, 1, 7, 2])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "deep er").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(folder / "deep er" / "grey.jpg")
    Image.fromarray(rng.integers(0, 256, (33, 44, 4), dtype=np.uint8)).save(folder / "deep er" / "rgba.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_maps_overlays_legend_and_index(named: Path, pictures: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    index = segment(named, out, [pictures], progress=lambda done, total: seen.append((done, total)))
    assert index == out / "index.html"
    assert seen == [(1, 3), (2, 3), (3, 3)]
    legend = {entry["id"]: entry for entry in json.loads((out / "legend.json").read_text())}
    assert legend[7] == {"id": 7, "name": "person", "colour": hex_colour(SYNTHETIC.colours[7])}
    assert legend[8]["name"] == "cluster 1"
    for name, size in (("a", (70, 40)), ("deep er/grey", (50, 60)), ("deep er/rgba", (44, 33))):
        label = Image.open(out / "labels" / f"{name}.png")
        assert label.mode == "P"
        assert label.size == size
        assert set(np.unique(np.asarray(label))) <= {3, 8, 0, 1, 7, 2}
        overlay = Image.open(out / "overlays" / f"{name}.png")
        assert overlay.size[0] == size[0]
        assert overlay.size[1] > size[1]
    text = index.read_text()
    assert 'src="overlays/deep%20er/grey.png"' in text
    assert "<script" not in text
    assert not list(out.rglob(".*"))


def test_label_map_is_what_the_model_says(named: Path, pictures: Path, tmp_path: Path) -> None:
    segment(named, tmp_path / "out", [pictures / "a.png"])
    saved = load_checkpoint(named)
    image = np.asarray(Image.open(pictures / "a.png"))
    model: Model = saved.config.model
    feats = backbone_maps(load_backbone(model, 0, "cpu"), prepare_image(image, model).unsqueeze(0))
    clusters = Segmenter.from_checkpoint(saved).logits(feats, (40, 70)).argmax(1)[0].numpy()
    assert len(np.unique(clusters)) > 1
    expected = np.array([3, 8, 0, 1, 7, 2])[clusters]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png")), expected)


def test_unscored_model_shows_numbered_clusters(pictures: Path, tmp_path: Path) -> None:
    bare = write_checkpoint(tmp_path / "bare")
    index = segment(bare, tmp_path / "out", [pictures / "a.png"], flip=True)
    names = [entry["name"] for entry in json.loads((tmp_path / "out" / "legend.json").read_text())]
    assert names == [f"cluster {k}" for k in range(6)]
    assert "Nobody named the clusters" in index.read_text()


def test_a_sites_own_model_segments_and_an_untrained_one_never(pictures: Path, tmp_path: Path) -> None:
    apart = write_checkpoint(tmp_path / "apart", SYNTHETIC, [3, -1, 0, 1, 7, 2], sites=2)
    with pytest.raises(UserError, match="give --site and one of: a, b"):
        segment(apart, tmp_path / "out", [pictures / "a.png"])
    assert not (tmp_path / "out").exists()
    drawn = {}
    for site in "ab":
        index = segment(apart, tmp_path / site, [pictures / "a.png"], site=site)
        assert (
            f"the model of {site}" in index.read_text() and "Nobody named the clusters" in index.read_text()
        )
        drawn[site] = np.asarray(Image.open(tmp_path / site / "labels" / "a.png"))
    assert len(np.unique(drawn["a"])) > 1 and not np.array_equal(drawn["a"], drawn["b"])


def test_whole_picture_is_segmented_even_where_training_looked_at_the_centre(
    pictures: Path, tmp_path: Path
) -> None:
    cropped = write_checkpoint(tmp_path / "cropped", **{"model.crop": "center"})
    segment(cropped, tmp_path / "out", [pictures / "deep er" / "grey.jpg"])
    assert Image.open(tmp_path / "out" / "labels" / "grey.png").size == (50, 60)


def test_one_bad_picture_and_nothing_is_written_where_that_was_asked_for(
    named: Path, pictures: Path, tmp_path: Path
) -> None:
    whole = (pictures / "deep er" / "grey.jpg").read_bytes()
    (pictures / "zz.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"zz\.jpg"):
        segment(named, tmp_path / "out", [pictures], skip_unreadable=False)
    assert not (tmp_path / "out").exists()


def test_a_bad_picture_is_named_and_the_others_are_segmented(
    named: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "zz.jpg").write_bytes(b"no picture")
    index = segment(named, tmp_path / "out", [pictures])
    assert "zz.jpg" in capsys.readouterr().err and "zz.jpg" in index.read_text()
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == 3


def test_other_weights_are_refused(pictures: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", weights_hash="0123456789abcdef")
    with pytest.raises(UserError, match="backbone weights"):
        segment(other, tmp_path / "out", [pictures])
    assert not (tmp_path / "out").exists()


def test_inputs_are_found_in_order_without_earlier_results(pictures: Path) -> None:
    jobs = find_pictures([pictures]).jobs
    assert [job.name.as_posix() for job in jobs] == ["a", "deep er/grey", "deep er/rgba"]
    assert len(find_pictures([pictures], exclude=pictures / "deep er").jobs) == 1


def test_inputs_that_cannot_be_are_refused(pictures: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for inputs, words in (
        ([], "No picture"),
        ([empty], "holds no picture"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([pictures / "a.png", pictures], r"both be written as a\.png"),
    ):
        with pytest.raises(UserError, match=words):
            find_pictures(inputs)


def test_every_odd_picture_is_segmented_or_named(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    taken, refused = write_pillow(folder), write_refused(folder, tmp_path / "outside")
    segment(named, tmp_path / "out", [folder])
    said = capsys.readouterr().err
    assert all(name in said for name in refused)
    assert len(list((tmp_path / "out" / "labels").rglob("*.png"))) == len(taken)
    assert Image.open(tmp_path / "out" / "labels" / "turned.png").size == (36, 48)


def test_masks_of_geotiffs_lie_where_their_images_lie(named: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 5e6, 10, 10)}
    folder = tmp_path / "tiles"
    folder.mkdir()
    shape = {"driver": "GTiff", "height": 30, "width": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "a.tif", "w", **shape, **place) as target:
        target.write(np.random.default_rng(0).integers(0, 256, (3, 30, 40), dtype=np.uint8))
    Image.new("RGB", (40, 30)).save(folder / "plain.tif")
    segment(named, tmp_path / "out", [folder])
    labels = tmp_path / "out" / "labels"
    with rasterio.open(labels / "a.tif") as found:
        assert found.crs == place["crs"] and found.transform == place["transform"]
        assert np.array_equal(found.read(1), np.asarray(Image.open(labels / "a.png")))
    assert not (labels / "plain.tif").exists()
