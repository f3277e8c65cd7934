"""Tests naming of clusters: page, TOML, loopback server and labels, and that segmenting and ONNX use the names."""

from __future__ import annotations

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.checkpoint import load_checkpoint
from common.data.classes import ClassTable, load_table
from common.data.manifest import Shard, read_shard
from common.errors import UserError
from common.evaluation.overlay import VOID_COLOUR, hex_colour, make_legend, overlay
from partitions.__main__ import partitions_main
from server.__main__ import server_main
from server.commands.name import serve_page, write_names_page
from server.commands.segment import segment
from server.naming import name_by_labels, names_toml, parse_names, table_of
from server.report.names_page import ClusterGallery, names_page
from tests.support.checkpoints import write_checkpoint, write_network_checkpoint
from tests.support.odd_images import photo

NAMES = ["road", "nothing", "road", "", 'sky "blue"', ""]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(4):
        (folder / f"site{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(photo(index)).save(folder / f"site{index % 2}" / f"{index}.png")
    out = folder.parent / "shards"
    partitions_main(["folder", "--root", str(folder), "--out", str(out)])
    return out


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    write_checkpoint(tmp_path / "run", **{"simulation.shards": str(shards)})
    return tmp_path / "run"


def test_names_come_back_from_their_file_and_anything_else_is_refused() -> None:
    assert parse_names(names_toml(NAMES, "a run"), 6, "x") == NAMES
    for text, words in (
        ("no toml", "x is no TOML"),
        ("a = 1", "no table"),
        ('[names]\n6 = "a"', "expected numbers from 0 to 5"),
        ("[names]\n1 = 2", "expected a text"),
        (f'[names]\n1 = "{"a" * 99}"', "at most 60 characters"),
    ):
        with pytest.raises(UserError, match=words):
            parse_names(text, 6, "x")
    with pytest.raises(UserError, match="No cluster has a name"):
        table_of([""] * 6)


def test_the_same_name_joins_and_colors_of_known_classes_stay() -> None:
    table, mapping = table_of(NAMES, load_table("synthetic"))
    assert table.names == ("road", "nothing", 'sky "blue"') and mapping == [0, 1, 0, -1, 2, -1]
    known = load_table("synthetic")
    assert table.colours[0] == known.colours[known.names.index("road")] and table.colours[1] == VOID_COLOUR


def test_overlays_leave_nothing_as_it_is() -> None:
    legend = make_legend(2, ClassTable(names=("road", "nothing")), [0, 1])
    image = photo()
    shown = overlay(image, np.ones(image.shape[:2], np.uint8), legend)
    gray = 0.5 * image + 0.5 * image.mean(axis=2, keepdims=True)
    assert np.abs(shown - gray).max() <= 1


def test_a_toml_file_names_masks_legend_report_and_export(run: Path, tmp_path: Path, shards: Path) -> None:
    (tmp_path / "n.toml").write_text(names_toml(NAMES, "run"), encoding="utf-8")
    before = load_checkpoint(run)
    server_main(["name", str(run), "--names", str(tmp_path / "n.toml")])
    saved = load_checkpoint(run)
    assert np.array_equal(saved.centroids, before.centroids) and saved.mapping == [0, 1, 0, -1, 2, -1]
    assert parse_names((run / "names.toml").read_text(), 6, "x") == NAMES
    root = read_shard(shards / "site-0.jsonl").root
    segment(run, tmp_path / "out", [root])
    legend = json.loads((tmp_path / "out" / "legend.json").read_text())
    assert [one["name"] for one in legend][:3] == ["road", "nothing", 'sky "blue"']
    assert legend[1]["colour"] == hex_colour(VOID_COLOUR)
    from server.tasks.base import task_of

    _, described = task_of(saved.config).predictor(saved, "x", "cpu", "global", None).export()
    assert [one["name"] for one in json.loads(described["clusters"])][:3] == ["road", "nothing", "road"]


def test_the_page_shows_each_cluster_and_needs_no_other_file(run: Path) -> None:
    page = write_names_page(run, None, 4)
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r'data-cluster="\d"', text)) == 6
    assert "data:image/jpeg;base64," in text and not re.search(r'(src|href)="(?!data:)', text)
    assert "site-0" in text and "site-1" in text


def test_crops_show_the_cluster_and_names_cannot_break_out_of_the_page() -> None:
    gallery = ClusterGallery(2)
    image, labels = photo(0, (60, 80)), np.zeros((60, 80), np.uint8)
    labels[10:30, 50:75] = 1
    gallery.add(image, labels, "</script><b>", 'a".png')
    share = gallery.seen[1].crops[0][0]
    assert share > 0.5 and gallery.seen[1].area == {"</script><b>": 20 * 25}
    rows, columns = np.nonzero(gallery.seen[1].places > 0.5)
    assert rows.min() >= 2 and rows.max() <= 5 and columns.min() >= 10
    text = names_page(gallery, ['"><script>alert(1)</script>', ""], "t")
    assert text.count("<script>") == 1 and text.count("</script>") == 1


def test_the_loopback_server_saves_what_the_page_sends(run: Path) -> None:
    server, address = serve_page(run, write_names_page(run, None, 2))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with urllib.request.urlopen(address) as answer:
            assert 'target = "/' in answer.read().decode()
        with urllib.request.urlopen(address, data=names_toml(NAMES, "x").encode()) as answer:
            assert "4 of 6 clusters named, 3 classes" in answer.read().decode()
        assert load_checkpoint(run).mapping == [0, 1, 0, -1, 2, -1]
        for where, data in ((address, b"nonsense"), (address[:-3] + "abc", b"[names]")):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(where, data=data)
    finally:
        server.shutdown()
        server.server_close()


def _labelled(folder: Path, images: int) -> Shard:
    """Write images whose clusters, as `_bands` sees them, are the classes 0, 1, 1, 2 from the top down."""
    lines = []
    for index in range(images):
        Image.fromarray(photo(index)).save(folder / f"{index}.png")
        label = np.repeat(np.array([0, 1, 1, 2], np.uint8), 9)[:, None].repeat(48, axis=1)
        Image.fromarray(label).save(folder / f"{index}-l.png")
        lines.append(json.dumps({"image": f"{index}.png", "label": f"{index}-l.png"}))
    (folder / "labelled.jsonl").write_text("\n".join(lines) + "\n")
    return read_shard(folder / "labelled.jsonl", classes=ClassTable(names=("sky", "tree", "road")))


def _bands(image: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(4, dtype=np.uint8), 9)[:, None].repeat(48, axis=1)


def test_labels_name_and_join_clusters_with_an_honest_score(tmp_path: Path) -> None:
    named = name_by_labels(_bands, _labelled(tmp_path, 6), 5)
    assert named.names == ["sky", "tree", "tree", "road", ""] and named.images == 6
    assert named.score is not None and named.score.miou == 1.0 == named.seen.miou


def test_the_score_is_of_images_that_did_not_choose_the_names(tmp_path: Path) -> None:
    """Clusters that tell images apart, not classes: what names them on one half says nothing about the other."""
    shard = _labelled(tmp_path, 8)
    rng, turn = np.random.default_rng(0), iter(range(100))

    def memorize(image: np.ndarray) -> np.ndarray:
        # the first four calls see one half, the next four the other: clusters of one are never seen in the other
        number = next(turn)
        bands = np.repeat(np.array([0, 1, 1, 2], np.uint8), 9)[:, None].repeat(48, axis=1)
        return (bands + 3 * number + 0 * rng.integers(2)).astype(np.uint8)

    named = name_by_labels(memorize, shard, 24)
    assert named.seen.miou == 1.0
    assert named.score is not None and named.score.miou == 0.0


def test_names_of_labels_are_used_and_scored_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = _labelled(tmp_path, 4)
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"names": ["sky", "tree", "road"]}))
    server_main(["name", str(run), "--from", str(shard.path), "--classes", str(table)])
    assert "did not choose" in capsys.readouterr().out
    saved = load_checkpoint(run)
    assert saved.classes is not None and set(saved.classes.names) <= {"sky", "tree", "road", "nothing"}
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps({"names": ["road", "sky", "tree"], "remap": {"0": 1, "1": 2, "2": 0}}))
    found = []
    for classes in (table, turned):
        words = ["evaluate", "--checkpoint", str(run), "--shard", str(shard.path), "--classes", str(classes)]
        server_main([*words, "--matching", "checkpoint", "--json", str(tmp_path / "o.json")])
        found.append(json.loads((tmp_path / "o.json").read_text()))
    assert found[0]["miou"] == found[1]["miou"] and found[0]["per_class_iou"] == found[1]["per_class_iou"]


def test_what_has_no_clusters_to_name_is_refused(tmp_path: Path, run: Path) -> None:
    write_network_checkpoint(tmp_path / "net")
    write_checkpoint(tmp_path / "apart", sites=2)
    for other, words in (("net", "trained with classes"), ("apart", "a model for each site")):
        with pytest.raises(UserError, match=words):
            write_names_page(tmp_path / other, None, 2)
    shutil.move(run / "checkpoints", tmp_path / "moved")
    with pytest.raises(UserError):
        write_names_page(run, None, 2)
