"""Does a good run of whole networks pass the questions before it, and does nobody look at labels without need?

What a simulation refuses, and in which words, stands in ``tests/test_bad_input.py``. Here is what a federation refuses,
where nobody but the server itself asks about the source.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from common.data.classes import load_table
from common.data.manifest import read_shard
from common.errors import UserError
from common.settings.schema import RunConfig
from server.evaluation.networks import NetworkScorer
from server.evaluation.scorer import evaluation_shard, evaluation_shards
from server.loop.run import run
from server.preflight import need_classes, scored_shards
from server.settings.network_rules import check_clusters, refuse_conflicts, refuse_other_form
from server.simulate import check_run
from server.tasks.adaptation import check_source, check_start, least_side
from tests.support.federation import local_grid, network_config

pytestmark = pytest.mark.usefixtures("narrow")

SYNTHETIC = load_table("synthetic")


def by_hand(scenes: Path, folder: Path) -> Path:
    """Copy the manifests without their partition.json, as someone writes them who has none."""
    described = json.loads((scenes / "partition.json").read_text())
    shards = folder / "by-hand"
    shutil.copytree(scenes / described["root"], shards)
    for path in scenes.glob("*.jsonl"):
        shutil.copy(path, shards)
    return shards


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eval__shard": "eval.jsonl", "clusters__layers": "decoder"},
        {"eval__where": "sites", "eval__shard": "{site}.jsonl"},
        {"sites__pool": True, "eval__shard": "eval.jsonl"},
        {"task": "adaptation", "style__transfer": "lab", "rounds": 0},
        {"task": "adaptation", "centroids__share": "none", "teacher__update": "student"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "plain",
)
def test_what_can_run_passes_and_leaves_an_empty_run_directory(
    scenes: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    before = files(scenes)
    check_run(network_config(scenes, tmp_path, **settings))
    assert files(tmp_path) == {tmp_path / "run"} and files(scenes) == before


def test_hand_written_manifests_take_the_table_that_the_run_names(scenes: Path, tmp_path: Path) -> None:
    shards = by_hand(scenes, tmp_path)
    check_run(network_config(shards, tmp_path, eval__classes="synthetic", eval__shard="eval.jsonl"))
    with pytest.raises(UserError, match=r"needs a class table and none is known; name one by eval\.classes"):
        check_run(network_config(shards, tmp_path))


def labels_of(scenes: Path, name: str) -> set[str]:
    return {json.loads(line)["label"] for line in (scenes / f"{name}.jsonl").read_text().splitlines()}


def test_adaptation_looks_at_no_label_of_a_site(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: set[str] = set()
    root = (scenes / json.loads((scenes / "partition.json").read_text())["root"]).resolve()

    def closed(path: Path, *_: object) -> None:
        opened.add(Path(path).relative_to(root).as_posix())
        raise UserError("Closed.")

    monkeypatch.setattr("common.data.images.read_label", closed)
    with pytest.raises(UserError, match="Closed"):
        check_run(network_config(scenes, tmp_path, task="adaptation"))
    assert opened == labels_of(scenes, "eval")  # the source
    opened.clear()
    with pytest.raises(UserError, match="Closed"):
        check_run(network_config(scenes, tmp_path))
    assert opened == labels_of(scenes, "site-0")


@pytest.mark.parametrize(
    ("settings", "sites", "fits"),
    [
        ({}, 1, True),
        ({"clusters__layers": "bn"}, 3, True),
        ({"clusters__layers": "bn"}, 2, False),
        ({"clusters__layers": "bn", "clusters__exact": 2}, 2, True),
        ({"clusters__layers": "bn", "clusters__exact": 3}, 2, False),
        ({"clusters__layers": "bn", "clusters__smallest": 4}, 4, False),
    ],
)
def test_clusters_need_sites(
    scenes: Path, tmp_path: Path, settings: dict[str, Any], sites: int, fits: bool
) -> None:
    config = network_config(scenes, tmp_path, **settings)
    if fits:
        check_clusters(config, sites)
    else:
        with pytest.raises(UserError, match=f"but there are {sites}; lower it"):
            check_clusters(config, sites)


def test_the_table_is_that_of_the_shards_folder(scenes: Path, tmp_path: Path) -> None:
    assert need_classes(network_config(scenes, tmp_path)) == SYNTHETIC
    assert need_classes(network_config(scenes, tmp_path, eval__classes="camvid")).name == "camvid"


def test_scored_labels_mean_what_their_own_table_says(tmp_path: Path) -> None:
    """GTA5 and IDDA write the same 16 classes by different raw values: one run may be scored on both."""
    described = {"dataset": "f", "rule": "iid", "seed": 0, "root": ".", "sites": {"site-0": 1}}
    for name, table in (("game", load_table("gta5-16")), ("bare", None)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.jsonl").write_text(json.dumps({"image": "a.png", "label": "b.png"}) + "\n")
        if table is not None:
            (folder / "partition.json").write_text(json.dumps(described | {"classes": table.to_json()}))
    game, bare = (str(tmp_path / name / f"{name}.jsonl") for name in ("game", "bare"))

    def asked(shard: str, classes: str = "idda-16") -> RunConfig:
        return network_config(tmp_path, tmp_path, eval__shard=shard, eval__classes=classes)

    both = evaluation_shards(asked(f"{game}, {bare}"))
    assert [shard.classes for shard in both] == [load_table("gta5-16"), load_table("idda-16")]
    for shard, table in ((game, "gta5-16"), (bare, "idda-16")):
        found = evaluation_shard(asked(shard))
        assert found is not None and found.classes == load_table(table)
    for read in (evaluation_shards, evaluation_shard):
        with pytest.raises(UserError, match=r"table 'gta5-16' but eval\.classes is 'gta5-13', whose names"):
            read(asked(game, "gta5-13"))


def test_shards_of_sites_are_scored_once_each(scenes: Path, tmp_path: Path) -> None:
    config = network_config(scenes, tmp_path, eval__where="sites", eval__shard="eval.jsonl")
    assert [shard.name for shard in scored_shards(config, ["site-0", "site-1"])] == ["eval"]
    assert scored_shards(network_config(scenes, tmp_path, eval__where="none"), ["site-0"]) == []


def test_what_honours_every_setting_is_not_refused(scenes: Path, tmp_path: Path) -> None:
    fine: list[dict[str, Any]] = [
        {"aggregation__optimizer": "yogi", "aggregation__rule": "median"},
        {"clusters__layers": "bn", "network__batchnorm": "local-statistics"},
        {"clusters__layers": "bn+decoder", "network__batchnorm": "local"},
        {"task": "adaptation", "clusters__layers": "all", "teacher__update": "mean"},
    ]
    for settings in fine:
        refuse_conflicts(network_config(scenes, tmp_path, **settings))


def test_a_run_may_go_on_with_another_length_and_learning_rate(scenes: Path, tmp_path: Path) -> None:
    one = network_config(scenes, tmp_path)
    refuse_other_form(one, network_config(scenes, tmp_path, rounds=9, sgd__lr=0.5))
    with pytest.raises(UserError, match=r"aggregation\.optimizer = 'none', this run has 'adam'"):
        refuse_other_form(one, network_config(scenes, tmp_path, aggregation__optimizer="adam"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"style__width": 96}, r"style\.width = '64', this run has '96'"),
        ({"style__side": 5}, r"style\.side = '3', this run has '5'"),
        ({"style__transfer": "lab"}, r"style\.transfer = 'fourier', this run has 'lab'"),
    ],
)
def test_clusters_go_on_by_the_measure_that_found_them_alone(
    scenes: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    """By another one, images and late sites would go to the wrong cluster."""
    given: dict[str, Any] = {"task": "adaptation", "style__height": 64, "style__width": 64, "style__side": 3}
    for layers in ("bn", "none"):
        one = network_config(scenes, tmp_path, **given, clusters__layers=layers)
        other = network_config(scenes, tmp_path, **(given | changed), clusters__layers=layers)
        if layers == "none":
            refuse_other_form(one, other)
            continue
        with pytest.raises(UserError, match=words):
            refuse_other_form(one, other)


# --- the source of a real federation --------------------------------------------------------------------


def write_source(folder: Path, classes: dict[str, Any] | None, size: tuple[int, int] = (72, 96)) -> Path:
    """Write two labelled pictures (height, width) with a class table of their own; returns their manifest."""
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((*size, 3), 99, np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(np.zeros(size, np.uint8)).save(folder / f"{name}-label.png")
    entries = [{"image": f"{name}.png", "label": f"{name}-label.png"} for name in ("a", "b")]
    (folder / "source.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    described = {"dataset": "f", "rule": "iid", "seed": 0, "root": ".", "sites": {"source": 2}}
    (folder / "partition.json").write_text(json.dumps(described | {"classes": classes}))
    return folder / "source.jsonl"


def swapped() -> dict[str, Any]:
    """The run's classes in another order: as many, so that nothing would fail."""
    found = SYNTHETIC.to_json()
    found["names"] = [found["names"][1], found["names"][0], *found["names"][2:]]
    return found


def refused(scenes: Path, tmp_path: Path, sentence: str, **settings: Any) -> None:
    """Run a federation, and ask as a simulation asks: both refuse in the same words, and no site heard a thing."""
    config = network_config(scenes, tmp_path, task="adaptation", **settings)
    grid = local_grid(4)
    for attempt in (lambda: run(grid, config), lambda: check_run(config)):
        with pytest.raises(UserError, match=sentence):
            attempt()
    assert grid.sent == []
    assert re.search(f"the run ends: .*{sentence}", (tmp_path / "run" / "log.txt").read_text())


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (
            load_table("camvid").to_json(),
            r"has 11 classes \(camvid\), the run has 8 \(synthetic\); use one class table",
        ),
        (
            swapped(),
            r"source\.jsonl calls a class 'building' \(synthetic\) that the run calls 'sky' \(synthetic\); use",
        ),
    ],
    ids=["another number", "other names"],
)
def test_a_source_of_other_classes_ends_a_run_before_anything_is_sent(
    scenes: Path, tmp_path: Path, classes: dict[str, Any], sentence: str
) -> None:
    source = write_source(tmp_path / "source", classes)
    refused(scenes, tmp_path, sentence, source__shard=str(source))


def test_a_source_without_all_labels_ends_a_run_before_anything_is_sent(scenes: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", SYNTHETIC.to_json())
    source.write_text(source.read_text() + json.dumps({"image": "c.png"}) + "\n")
    sentence = r"1 of 3 images of .*source\.jsonl have no label, but a source is trained on with labels"
    refused(scenes, tmp_path, sentence, source__shard=str(source))


@pytest.mark.parametrize(
    ("size", "style"),
    [
        ((30, 96), {"style__transfer": "fourier", "style__side": 31}),
        ((96, 30), {"style__transfer": "fourier", "style__side": 31}),
        ((40, 30), {"style__transfer": "spectra", "style__side": 0, "style__fraction": 0.25}),
    ],
)
def test_a_source_smaller_than_the_window_ends_a_run_before_anything_is_sent(
    scenes: Path, tmp_path: Path, size: tuple[int, int], style: dict[str, Any]
) -> None:
    source = write_source(tmp_path / "source", SYNTHETIC.to_json(), size)
    sentence = (
        rf"a\.png has {size[1]} x {size[0]} pixels, but the style window has .* choose a smaller window"
    )
    refused(scenes, tmp_path, sentence, source__shard=str(source), **style)
    check_source(network_config(scenes, tmp_path, task="adaptation", source__shard=str(source)), SYNTHETIC)


def test_styles_that_are_gone_and_models_that_do_not_fit_end_a_run_before_anything_is_sent(
    scenes: Path, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.safetensors")
    refused(
        scenes, tmp_path, "The style bank .* does not exist", style__transfer="fourier", source__styles=gone
    )
    refused(scenes, tmp_path, "Checkpoint .* does not exist", source__checkpoint=gone)
    refused(scenes, tmp_path, r"none is named: set source\.checkpoint, or source\.shard", source__shard="")


def spoil(folder: Path, fault: str) -> None:
    """Break what `write_source` wrote: all labels for ``ignored`` ones, else the second pair."""
    image, label = folder / "b.png", folder / "b-label.png"
    if fault == "ignored":
        for path in folder.glob("*-label.png"):
            Image.new("L", (96, 72), 255).save(path)
    elif fault == "value":
        Image.new("L", (96, 72), 77).save(label)
    elif fault == "size":
        Image.new("L", (90, 72)).save(label)
    else:
        image.write_text("no picture")


FAULTS = {
    "ignored": "Every pixel in the label maps of .*source.jsonl is ignored by the class table 'synthetic'",
    "value": "b-label.png holds the value 77, which class table 'synthetic'",
    "size": "b.png is 96 x 72 but its label map .* is 90 x 72 pixels; make both the same size",
    "picture": "b.png is no picture that can be read",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("key", ["eval__shard", "source__shard"])
def test_labels_that_do_not_fit_end_a_run_before_anything_is_sent(
    scenes: Path, tmp_path: Path, key: str, fault: str
) -> None:
    manifest = write_source(tmp_path / "labelled", SYNTHETIC.to_json())
    spoil(manifest.parent, fault)
    refused(scenes, tmp_path, FAULTS[fault], **{key: str(manifest)})


def test_a_set_of_other_classes_ends_a_run_before_anything_is_sent(scenes: Path, tmp_path: Path) -> None:
    """The run's classes come from its sites; as many classes of other names would be counted as these."""
    manifest = write_source(tmp_path / "labelled", swapped())
    refused(
        scenes, tmp_path, "calls a class 'building' .* that the run calls 'sky'", eval__shard=str(manifest)
    )


def test_images_on_their_side_fit_their_labels(scenes: Path, tmp_path: Path) -> None:
    manifest = write_source(tmp_path / "labelled", SYNTHETIC.to_json())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    with Image.open(manifest.parent / "a.png") as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(manifest.parent / "a.png", exif=exif)
    config = network_config(scenes, tmp_path, task="adaptation", eval__shard=str(manifest))
    assert NetworkScorer.open(config).split == "source"


def test_a_set_without_classes_has_those_of_the_run(scenes: Path, tmp_path: Path) -> None:
    manifest = write_source(tmp_path / "labelled", SYNTHETIC.to_json())
    (manifest.parent / "partition.json").unlink()
    config = network_config(scenes, tmp_path, eval__shard=str(manifest))
    check_run(config)
    assert [shard.classes for shard in NetworkScorer.open(config).shards] == [SYNTHETIC]


def test_the_source_of_a_federation_is_asked_about_without_decoding_a_picture(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ImageFile.ImageFile.load

    def closed(file: ImageFile.ImageFile) -> Any:
        if "label" not in str(file.filename):
            raise AssertionError("a picture was decoded")
        return load(file)

    monkeypatch.setattr(ImageFile.ImageFile, "load", closed)
    config = network_config(scenes, tmp_path, task="adaptation", style__transfer="fourier")
    check_start(config, tmp_path / "run", None)
    with pytest.raises(AssertionError, match="decoded"):
        check_run(config)


def test_a_wide_window_needs_a_wide_picture_only(scenes: Path, tmp_path: Path) -> None:
    """33 columns, 17 rows: the header of a picture of 20 x 40 does not settle it."""
    source = write_source(tmp_path / "source", SYNTHETIC.to_json(), (20, 40))
    given: dict[str, Any] = {"style__transfer": "spectra", "style__side": 0, "style__fraction": 0.25}
    given |= {"style__height": 32, "style__width": 64, "source__shard": str(source)}
    check_source(network_config(scenes, tmp_path, task="adaptation", **given), SYNTHETIC)
    shard = read_shard(source, None)
    assert least_side(shard, 0) == 20
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "source" / "b.png")
    with pytest.raises(UserError, match=r"b\.png has 30 x 20 pixels, but the style window has 33 x 17"):
        check_source(network_config(scenes, tmp_path, task="adaptation", **given), SYNTHETIC)
    (tmp_path / "source" / "a.png").unlink()
    assert least_side(shard, 0) == 0
    with pytest.raises(UserError, match=r"a\.png does not exist; correct the manifest or the data root"):
        check_source(network_config(scenes, tmp_path, task="adaptation", **given), SYNTHETIC)


def test_a_run_that_goes_on_after_a_round_needs_its_source_no_more(scenes: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", SYNTHETIC.to_json())
    given: dict[str, Any] = {"task": "adaptation", "source__shard": str(source)}
    run(local_grid(4), network_config(scenes, tmp_path, **given | {"rounds": 1}))
    source.unlink()
    config = network_config(scenes, tmp_path, resume=str(tmp_path / "run"), **given)
    check_run(config)
    run(local_grid(4), config)


def test_sites_that_form_no_clusters_end_a_run_before_it_pretrains(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretrained(*_: object) -> None:
        raise AssertionError("hours went by")

    monkeypatch.setattr("server.tasks.adaptation.pretrained_model", pretrained)
    given: dict[str, Any] = {"task": "adaptation", "clusters__layers": "bn", "clusters__exact": 9}
    with pytest.raises(UserError, match=r"clusters\.exact is 9 and needs 9 sites, but there are 4"):
        run(local_grid(4), network_config(scenes, tmp_path, **given))
    given["clusters__exact"] = 2
    with pytest.raises(AssertionError, match="hours went by"):
        run(local_grid(4), network_config(scenes, tmp_path / "enough", **given))
    assert (tmp_path / "enough" / "run" / "clusters.json").is_file()
