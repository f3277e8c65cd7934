"""Does every command refuse bad input in one sentence, with exit code 2, and leave nothing half-written?"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from client.app import app as client_app
from common.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from common.data.classes import load_table
from common.models.backbone import load_backbone
from common.models.head import build_head, init_centroids, state_to_numpy
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.styles.bank import StyleBank
from common.styles.style import style_shape
from server.loop import run as rounds
from tests.conftest import ROOT
from tests.support.local_grid import LocalGrid
from tests.support.small_network import shrink_network
from tests.support.workshop import (
    SETTINGS,
    Workshop,
    run_command,
    save_label,
    save_picture,
    truncate,
)

Words = list[Any]


@dataclass(frozen=True)
class Row:
    """A fault: what it is, how it is brought about (returns the words), and what the sentence must say."""

    name: str
    words: Callable[[Workshop], Words]
    sentence: str
    after: str = "error:"


ROWS: list[Row] = []


def row(sentence: str, after: str = "error:") -> Callable[[Callable[[Workshop], Words]], None]:
    """Add a fault to the table."""

    def add(words: Callable[[Workshop], Words]) -> None:
        ROWS.append(Row(words.__name__, words, sentence, after))

    return add


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the workshop's settings, with random weights."""
    config = load_config(SETTINGS)
    backbone = load_backbone(config.model, config.seed, "cpu")
    path = tmp_path_factory.mktemp("trained") / "checkpoints" / "round-0001.safetensors"
    head = state_to_numpy(build_head(backbone.channels, config.model, 0))
    saved = Checkpoint(
        round=1,
        head=head,
        centroids=init_centroids(config.model.clusters, config.model.dim, 0),
        config=config,
        classes=load_table("crackforest"),
        weights_hash=backbone.weights_hash,
        channels=backbone.channels,
        grid=backbone.grid,
        mapping=[0, 1, 0, 1],
    )
    save_checkpoint(path, saved)
    return path


@pytest.fixture
def shop(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A workshop of its own for each test; Flower's engine never starts."""
    checkpoint = tmp_path / "run" / "checkpoints" / trained.name
    checkpoint.parent.mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        shutil.copy(trained.with_suffix(suffix), checkpoint.with_suffix(suffix))

    def never(config: RunConfig, gpus_per_site: float) -> Path:
        raise AssertionError("Flower was started")

    monkeypatch.setattr("server.simulate.run_in_flower", never)
    # simulated faults of the system live in this process, so that the backbone has to as well
    monkeypatch.setattr(
        "server.preflight.run_in_subprocess", lambda function, *arguments: function(*arguments)
    )
    return Workshop(tmp_path, checkpoint, monkeypatch)


def change_sidecar(shop: Workshop, **changes: Any) -> None:
    sidecar = shop.checkpoint.with_suffix(".json")
    told = json.loads(sidecar.read_text())
    told.pop("json_sha256", None)  # as in files of earlier releases: else the checksum alone would refuse it
    sidecar.write_text(json.dumps(told | changes))


def fill_disk(shop: Workshop) -> None:
    usage = namedtuple("usage", "total used free")
    shop.monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))


def no_permission(shop: Workshop) -> None:
    """Refuse new files and folders, as the system does; root would be let in by a real read-only folder."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.TemporaryFile"):
        shop.monkeypatch.setattr(name, refuse)


# --- python -m partitions -------------------------------------------------------------------------------


def split(shop: Workshop, *words: object, dataset: str = "folder") -> Words:
    return ["partitions", dataset, "--root", shop.shards / "images", "--out", shop.out, *words]


def labelled_split(shop: Workshop) -> Words:
    """Pictures and labels of the evaluation shard, side by side."""
    root = shop.tmp / "labelled"
    shutil.copytree(shop.shards / "labels", root / "labels")
    for path in sorted((shop.shards / "images").glob("e-*.png")):
        save_picture(root / "images" / path.name)
    words: Words = ["partitions", "folder", "--root", root, "--images", "images", "--labels", "labels"]
    return [*words, "--classes", "crackforest", "--by", "iid", "--sites", "2", "--out", shop.out]


@row("no data set 'camvd': did you mean 'camvid'")
def partitions_unknown_data_set(shop: Workshop) -> Words:
    return split(shop, dataset="camvd")


@row("no rule 'idd': did you mean 'iid'")
def partitions_unknown_rule(shop: Workshop) -> Words:
    return split(shop, "--by", "idd", "--sites", "2")


@row("'--sites': 'two' is not a valid integer; see `python -m partitions folder --help`")
def partitions_wrong_type(shop: Workshop) -> Words:
    return split(shop, "--sites", "two")


@row("--sites is 99 but there are only 14 images")
def partitions_more_sites_than_images(shop: Workshop) -> Words:
    return split(shop, "--by", "iid", "--sites", "99")


@row("holds no images .*jpg")
def partitions_empty_folder(shop: Workshop) -> Words:
    (shop.tmp / "empty").mkdir()
    return ["partitions", "folder", "--root", shop.tmp / "empty", "--out", shop.out]


@row("is no folder; expected a folder of images")
def partitions_missing_folder(shop: Workshop) -> Words:
    return ["partitions", "folder", "--root", shop.tmp / "gone", "--out", shop.out]


@row("0-3.png is damaged or truncated .*; replace it or remove it")
def partitions_truncated_image(shop: Workshop) -> Words:
    truncate(shop.shards / "images/0-3.png")
    return split(shop, "--by", "iid", "--sites", "2")


@row("0-3.png is no picture that can be read")
def partitions_no_image_at_all(shop: Workshop) -> Words:
    (shop.shards / "images/0-3.png").write_text("no picture")
    return split(shop, "--by", "iid", "--sites", "2")


@row("e-1.png has no label map .*; add the file, leave the image out")
def partitions_missing_label(shop: Workshop) -> Words:
    words = labelled_split(shop)
    (shop.tmp / "labelled/labels/e-1.png").unlink()
    return words


@row("e-1.png holds the value 77, which class table 'crackforest' .* does not know")
def partitions_label_value_out_of_range(shop: Workshop) -> Words:
    words = labelled_split(shop)
    save_label(shop.tmp / "labelled/labels/e-1.png", 77)
    return words


@row("is 32 x 24 but its label map .* is 30 x 20 pixels; make both the same size")
def partitions_label_of_another_size(shop: Workshop) -> Words:
    words = labelled_split(shop)
    save_label(shop.tmp / "labelled/labels/e-1.png", 1, (20, 30))
    return words


def driving(shop: Workshop, dataset: str, *words: object) -> Words:
    return ["partitions", dataset, "--root", shop.tmp / dataset, "--out", shop.out, *words]


def gta5(shop: Workshop, value: int = 7, size: tuple[int, int] = (24, 32)) -> Words:
    """Two pictures; one label map holds ``value`` and has ``size``."""
    for name, chosen in (("00001", (24, 32)), ("00002", size)):
        save_picture(shop.tmp / f"gta5/images/{name}.png")
        save_label(shop.tmp / f"gta5/labels/{name}.png", value, chosen)
    return driving(shop, "gta5")


@row("00001.png holds the value 34, which class table 'cityscapes-27' .* does not know")
def partitions_label_value_outside_a_strict_table(shop: Workshop) -> Words:
    return [*gta5(shop, 34), "--classes", "cityscapes-27"]


@row("gta5/labels/00001.png holds the value 35, which class table 'gta5-16' .* does not know")
def partitions_label_value_that_gta5_does_not_have(shop: Workshop) -> Words:
    return [*gta5(shop, 35), "--classes", "gta5-16"]


@row(
    "--classes mapillary-19 was made for the raw values of another data set than gta5; choose .* or a JSON file"
)
def partitions_classes_of_another_data_set(shop: Workshop) -> Words:
    return [*gta5(shop), "--classes", "mapillary-19"]


@row(
    "in the label maps of the training images of gta5 is ignored by the class table 'gta5-13'; choose the table"
)
def partitions_labels_of_ignored_pixels_alone(shop: Workshop) -> Words:
    words = gta5(shop)
    for name in ("00001", "00002"):
        Image.new("L", (32, 24), color=12).save(shop.tmp / f"gta5/labels/{name}.png")
    return [*words, "--classes", "gta5-13"]


@row("The domain .*T01_CN_B has no folder RGB; complete it or take it away")
def partitions_idda_domain_without_pictures(shop: Workshop) -> Words:
    save_picture(shop.tmp / "idda/T01_CN_A/RGB/1_T01_CN_A.png")
    save_label(shop.tmp / "idda/T01_CN_A/Semantic/1_T01_CN_A.png", 7)
    save_picture(shop.tmp / "idda/T01_CN_B/rgb/1_T01_CN_B.png")
    return driving(shop, "idda")


@row("Semantic/1_T01_CN_A.png holds the value 24, which class table 'idda-16' .* does not know")
def partitions_label_value_that_idda_does_not_have(shop: Workshop) -> Words:
    save_picture(shop.tmp / "idda/T01_CN_A/RGB/1_T01_CN_A.png")
    save_label(shop.tmp / "idda/T01_CN_A/Semantic/1_T01_CN_A.png", 24)
    return driving(shop, "idda")


@row("a_000000_000019_gtFine_labelIds.png holds the value 34, which class table 'cityscapes-19'")
def partitions_label_value_that_cityscapes_does_not_have(shop: Workshop) -> Words:
    for part in ("train", "val"):
        name = f"{part}/a/a_000000_000019"
        save_picture(shop.tmp / f"cityscapes/leftImg8bit/{name}_leftImg8bit.png")
        save_label(shop.tmp / f"cityscapes/gtFine/{name}_gtFine_labelIds.png", 34)
    return driving(shop, "cityscapes", "--classes", "cityscapes-19")


@row("Test/p_eval.png holds the value 35, which class table 'crosscity-13'")
def partitions_label_value_that_crosscity_does_not_have(shop: Workshop) -> Words:
    save_picture(shop.tmp / "crosscity/cities/Rome/Images/Train/p.png")
    save_picture(shop.tmp / "crosscity/cities/Rome/Images/Test/p.png")
    save_label(shop.tmp / "crosscity/cities/Rome/Labels/Test/p_eval.png", 35)
    return driving(shop, "crosscity")


@row("v1.2/labels/p.png holds the value 66, which class table 'mapillary-19'")
def partitions_label_value_that_mapillary_does_not_have(shop: Workshop) -> Words:
    for part in ("training", "validation"):
        save_picture(shop.tmp / f"mapillary/{part}/images/p.png")
        save_label(shop.tmp / f"mapillary/{part}/v1.2/labels/p.png", 66)
    return driving(shop, "mapillary")


@row("idda/T01_CN_A/RGB/1_T01_CN_A.png is 32 x 24 but its label map .* is 30 x 20 pixels; make both the same")
def partitions_sizes_that_only_gta5_may_have(shop: Workshop) -> Words:
    save_picture(shop.tmp / "idda/T01_CN_A/RGB/1_T01_CN_A.png")
    save_label(shop.tmp / "idda/T01_CN_A/Semantic/1_T01_CN_A.png", 7, (20, 30))
    return driving(shop, "idda")


@row("gta5/labels/00002.png is (no picture that can be read|damaged or truncated)")
def partitions_broken_label_of_another_size(shop: Workshop) -> Words:
    words = gta5(shop, size=(20, 30))
    truncate(shop.tmp / "gta5/labels/00002.png")
    return words


def listed(shop: Workshop, **changes: Any) -> Words:
    """Pictures of the shards folder as one client of a LEAF list."""
    content = {"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": ["0-0.png", "0-1.png"]}}}
    (shop.tmp / "lists.json").write_text(json.dumps(content | changes))
    return split(shop, "--lists", shop.tmp / "lists.json", dataset="leaf")


@row("lists.json states num_samples of 3 in total for 1 clients but lists 2 images")
def partitions_leaf_counts_disagree(shop: Workshop) -> Words:
    return listed(shop, num_samples=[3])


@row("lists.json counts 2 in 'users' and 1 in 'user_data'")
def partitions_leaf_users_disagree(shop: Workshop) -> Words:
    return listed(shop, users=["a", "b"])


@row("--sites-of names domains but the images have none; give a --domain-\\* option")
def partitions_roles_without_domains(shop: Workshop) -> Words:
    return split(shop, "--sites-of", "images", "--source", "labels")


@row("--out .*lists.json exists already; give a new file")
def partitions_export_over_a_file(shop: Workshop) -> Words:
    listed(shop)
    return ["partitions", "export", "--shards", shop.shards, "--out", shop.tmp / "lists.json"]


@row("no class table 'crackfrost'")
def partitions_unknown_class_table(shop: Workshop) -> Words:
    return split(shop, "--classes", "crackfrost")


@row("holds other files .*; give a new folder")
def partitions_output_holds_something_else(shop: Workshop) -> Words:
    shop.out.mkdir()
    (shop.out / "thesis.txt").write_text("years of work")
    return split(shop, "--by", "iid", "--sites", "2")


@row("Cannot write --out .*: Permission denied; choose a folder that you may write to")
def partitions_no_write_permission(shop: Workshop) -> Words:
    no_permission(shop)
    return split(shop, "--by", "iid", "--sites", "2")


@row("Cannot write --out .*: No space left on device; choose a folder .* enough space")
def partitions_disk_full(shop: Workshop) -> Words:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shop.monkeypatch.setattr("partitions.__main__.write", full)
    return split(shop, "--by", "iid", "--sites", "2")


# --- python -m server simulate: settings ----------------------------------------------------------------


@row("Recipe .*camvid-defualt.toml does not exist; .* holds: .*camvid-default")
def simulate_unknown_recipe(shop: Workshop) -> Words:
    return ["server", "simulate", "--recipe", ROOT / "recipes/camvid-defualt.toml"]


@row("Recipe .* is not valid TOML")
def simulate_broken_recipe(shop: Workshop) -> Words:
    (shop.tmp / "r.toml").write_text("rounds = \n")
    return ["server", "simulate", "--recipe", shop.tmp / "r.toml"]


@row("Unknown settings key 'model.cluster': did you mean 'model.clusters'")
def simulate_unknown_key(shop: Workshop) -> Words:
    return shop.simulate(model__cluster=4)


@row("Setting 'rounds' is 'ten': .*integer")
def simulate_wrong_type(shop: Workshop) -> Words:
    return shop.simulate(rounds="ten")


@row("Setting 'model.clusters' is 1: .*greater than or equal to 2")
def simulate_one_cluster(shop: Workshop) -> Words:
    return shop.simulate(model__clusters=1)


@row("Setting 'model.clusters' is 256: .*less than or equal to 255")
def simulate_more_clusters_than_a_byte_counts(shop: Workshop) -> Words:
    return shop.simulate(model__clusters=256)


@row("Setting 'preset' is 'best'; expected one of default")
def simulate_unknown_preset(shop: Workshop) -> Words:
    return shop.simulate(preset="best")


@row("'rounds:3' is not of the form key=value")
def simulate_assignment_without_value(shop: Workshop) -> Words:
    return shop.simulate("--set", "rounds:3")


@row("No such option.*--round")
def simulate_unknown_option(shop: Workshop) -> Words:
    return shop.simulate("--round", "3")


@row("Missing command; see")
def server_without_a_command(shop: Workshop) -> Words:
    return ["server"]


@row("sites.minimum is 3 but .* holds 2 site")
def simulate_more_replies_than_sites(shop: Workshop) -> Words:
    return shop.simulate(sites__minimum=3)


@row("sites.per-round is 5 but .* holds 2 site")
def simulate_more_sites_than_there_are(shop: Workshop) -> Words:
    return shop.simulate(sites__per_round=5)


@row("aggregation.malicious 1 and aggregation.keep 0 needs at least 5 sites but 2 take part")
def simulate_krum_with_too_few_sites(shop: Workshop) -> Words:
    return shop.simulate(aggregation__rule="krum", aggregation__malicious=1)


@row("--gpus-per-site is 99 but torch sees")
def simulate_without_the_gpus(shop: Workshop) -> Words:
    return shop.simulate("--gpus-per-site", "99")


# --- python -m server simulate: shards and images -------------------------------------------------------


@row("No shards were given; use --shards DIR")
def simulate_without_shards(shop: Workshop) -> Words:
    return ["server", "simulate", "--run-dir", shop.out]


@row("shards folder .*gone does not exist; make it with `python -m partitions`")
def simulate_missing_shards(shop: Workshop) -> Words:
    return ["server", "simulate", "--shards", shop.tmp / "gone", "--run-dir", shop.out]


@row("empty holds no site-.*jsonl; make shards")
def simulate_empty_folder(shop: Workshop) -> Words:
    (shop.tmp / "empty").mkdir()
    return ["server", "simulate", "--shards", shop.tmp / "empty", "--run-dir", shop.out]


@row("site-0.jsonl names no image")
def simulate_empty_manifest(shop: Workshop) -> Words:
    shop.write_manifest("site-0", [])
    return shop.simulate()


@row("site-1.jsonl line 2 is no JSON")
def simulate_broken_manifest_line(shop: Workshop) -> Words:
    path = shop.shards / "site-1.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]))
    return shop.simulate()


@row("site-0.jsonl line 1: 'image' is '../secret.png': it leaves the data root")
def simulate_manifest_points_outside(shop: Workshop) -> Words:
    shop.first_entry(image="../secret.png")
    return shop.simulate()


@row("'image' is '/etc/passwd': it leaves the data root")
def simulate_manifest_names_an_absolute_path(shop: Workshop) -> Words:
    shop.first_entry(image="/etc/passwd")
    return shop.simulate()


@row("leaves the data root .* through a symbolic link")
def simulate_manifest_points_outside_through_a_link(shop: Workshop) -> Words:
    save_picture(shop.tmp / "elsewhere" / "x.png")
    (shop.shards / "link").symlink_to(shop.tmp / "elsewhere")
    shop.first_entry(image="link/x.png")
    return shop.simulate()


@row("The data root .*nowhere .* is no folder")
def simulate_data_root_that_is_no_folder(shop: Workshop) -> Words:
    return shop.simulate("--data-root", shop.tmp / "nowhere")


@row("site-0 holds 6 images, but local.neighbours = 6 needs at least 7; set local.neighbours to at most 5")
def simulate_fewer_images_than_neighbours(shop: Workshop) -> Words:
    return shop.simulate(local__neighbours=6)


@row("site-0 holds 6 images, but local.batch = 8 needs at least 8; set local.batch to at most 6")
def simulate_fewer_images_than_a_batch(shop: Workshop) -> Words:
    return shop.simulate(local__batch=8)


@row("site-1 holds 1 image, but local.batch = 4 needs at least 4")
def simulate_site_with_a_single_image(shop: Workshop) -> Words:
    shop.write_manifest("site-1", [{"image": "images/1-0.png"}])
    return shop.simulate()


@row("images/1-2.png of shard site-1 cannot be found .*; correct the manifest or the data root")
def simulate_missing_image(shop: Workshop) -> Words:
    (shop.shards / "images/1-2.png").unlink()
    return shop.simulate()


@row("1-2.png is damaged or truncated .*; replace it")
def simulate_truncated_image(shop: Workshop) -> Words:
    truncate(shop.shards / "images/1-2.png")
    return shop.simulate()


@row(r"1-2.png is no picture that can be read.*\(1 more images of site-1 have faults\)")
def simulate_unreadable_images(shop: Workshop) -> Words:
    for name in ("1-2", "1-4"):
        (shop.shards / f"images/{name}.png").write_bytes(b"\0" * 100)
    return shop.simulate()


# --- python -m server simulate: weights, labels, folders, checkpoints -----------------------------------


@row("Weights file .*gone.safetensors does not exist .*; set model.weights")
def simulate_missing_weights(shop: Workshop) -> Words:
    return shop.simulate(model__weights=str(shop.tmp / "gone.safetensors"))


@row("is not a readable safetensors file")
def simulate_broken_weights(shop: Workshop) -> Words:
    (shop.tmp / "w.safetensors").write_bytes(b"\x08" + b"\0" * 40)
    return shop.simulate(model__weights=str(shop.tmp / "w.safetensors"))


@row("Weights file .* does not fit: it lacks 'features")
def simulate_weights_of_another_model(shop: Workshop) -> Words:
    save_file({"blocks.0.norm.weight": np.ones(3, np.float32)}, shop.tmp / "w.safetensors")
    return shop.simulate(model__weights=str(shop.tmp / "w.safetensors"))


@row("pretrained weights of mobilenet_v2 are not on this machine and their server cannot be reached")
def simulate_pretrained_weights_offline(shop: Workshop) -> Words:
    shop.monkeypatch.setattr("common.models.weights.reachable", lambda url: False)
    shop.monkeypatch.setattr("torch.hub.get_dir", lambda: str(shop.tmp / "hub"))
    return shop.simulate(model__weights="pretrained")


@row("Backbone 'mobilenet_v9' is neither .*mobilenet_v2 nor a timm model")
def simulate_unknown_backbone(shop: Workshop) -> Words:
    return shop.simulate(model__backbone="mobilenet_v9")


@row("model.height is 33, which the 16-pixel patches of test_vit do not fill; set it to 32 or 48")
def simulate_size_that_patches_do_not_fill(shop: Workshop) -> Words:
    return shop.simulate(model__backbone="test_vit")


@row("manifest .*dev.jsonl does not exist")
def simulate_missing_evaluation_shard(shop: Workshop) -> Words:
    return shop.simulate(eval__shard="dev.jsonl")


@row("eval.jsonl names labels but no class table is known; set eval.classes")
def simulate_labels_without_a_class_table(shop: Workshop) -> Words:
    return shop.simulate(eval__classes="")


@row("eval.jsonl has the classes of table 'camvid' but eval.classes is 'crackforest', whose names are others")
def simulate_scored_labels_of_other_classes(shop: Workshop) -> Words:
    write_partition(shop, "camvid")
    return shop.simulate()


@row("labels/e-1.png does not exist")
def simulate_missing_label(shop: Workshop) -> Words:
    (shop.shards / "labels/e-1.png").unlink()
    return shop.simulate()


@row("e-1.png holds the value 9, which class table 'crackforest'")
def simulate_label_value_out_of_range(shop: Workshop) -> Words:
    save_label(shop.shards / "labels/e-1.png", 9)
    return shop.simulate()


@row("eval.where is 'sites' but no class table is known")
def simulate_scores_on_sites_without_classes(shop: Workshop) -> Words:
    return shop.simulate(eval__where="sites", eval__classes="")


@row("features need .* MB but the disk of the cache folder .* has 0.0 MB left")
def simulate_disk_too_full_for_the_cache(shop: Workshop) -> Words:
    fill_disk(shop)
    return shop.simulate()


@row("The cache folder .*cache cannot be written .*is a file.*; choose one")
def simulate_cache_folder_that_is_a_file(shop: Workshop) -> Words:
    (shop.tmp / "file").touch()
    return shop.simulate(simulation__cache=str(shop.tmp / "file" / "cache"))


@row("The cache folder .* cannot be written .*Permission denied")
def simulate_cache_folder_without_permission(shop: Workshop) -> Words:
    no_permission(shop)
    return shop.simulate()


@row("Cannot write results to .*; choose a --run-dir you may write to")
def simulate_run_dir_that_cannot_be(shop: Workshop) -> Words:
    (shop.tmp / "file").touch()
    return shop.simulate("--run-dir", shop.tmp / "file" / "run")


@row("out already holds a run; choose another --run-dir")
def simulate_run_dir_that_is_taken(shop: Workshop) -> Words:
    shop.out.mkdir()
    (shop.out / "metrics.jsonl").write_text('{"round": 1}\n')
    return shop.simulate()


@row("Checkpoint .*gone.safetensors does not exist")
def simulate_resume_from_nothing(shop: Workshop) -> Words:
    return shop.simulate("--resume", shop.tmp / "gone.safetensors")


@row("The checkpoint was made with model.dim = 8, this run has 12")
def simulate_resume_from_another_model(shop: Workshop) -> Words:
    return shop.simulate("--resume", shop.checkpoint, model__dim=12)


@row("The checkpoint belongs to backbone weights .*, the sites have .*; use the same weights file")
def simulate_resume_with_other_weights(shop: Workshop) -> Words:
    return shop.simulate("--resume", shop.checkpoint, seed=5)


# --- python -m server simulate and pretrain: whole networks ---------------------------------------------


def network(shop: Workshop, command: str = "simulate", **settings: object) -> Words:
    """Two sites with labels of two classes, and the words that train a network on them; nothing is wrong yet."""
    shrink_network(shop.monkeypatch)
    for site in range(2):
        names = [f"{site}-{i}.png" for i in range(3)]
        for name in names:
            save_label(shop.shards / "labels" / name)
        entries = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
        shop.write_manifest(f"site-{site}", entries)
    shop.settings = {
        "task": "supervised",
        "network.weights": "random",
        "rounds": 1,
        "eval.shard": "eval.jsonl",
        "eval.classes": "crackforest",
        "transforms.height": 32,
        "transforms.width": 32,
    }
    words = shop.simulate(**settings)
    words[1] = command
    return words


def adaptation(shop: Workshop, command: str = "simulate", **settings: object) -> Words:
    given = {"task": "adaptation", "source__shard": "eval.jsonl", "style__height": 16, "style__width": 16}
    return network(shop, command, **{**given, **settings})


def write_partition(shop: Workshop, table: str, swapped: bool = False) -> None:
    """Give the shards folder a class table."""
    described = load_table(table).to_json()
    if swapped:
        described["names"] = described["names"][::-1]
    content = {
        "dataset": "folder",
        "rule": "iid",
        "seed": 0,
        "root": ".",
        "sites": {"site-0": 3, "site-1": 3},
    }
    (shop.shards / "partition.json").write_text(json.dumps(content | {"classes": described}))


@row("Task 'supervised' needs a class table and none is known; name one by eval.classes")
def network_without_a_class_table(shop: Workshop) -> Words:
    return network(shop, eval__classes="")


@row(
    "1 of 3 images of .*site-1.jsonl have no label, but task 'supervised' trains with labels; add the labels"
)
def network_of_a_site_without_labels(shop: Workshop) -> Words:
    words = network(shop)
    names = [f"1-{i}.png" for i in range(3)]
    entries = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    shop.write_manifest("site-1", [*entries[:2], {"image": "images/1-2.png"}])
    return words


@row("1-2.png holds the value 9, which class table 'crackforest'")
def network_label_value_out_of_range(shop: Workshop) -> Words:
    words = network(shop)
    save_label(shop.shards / "labels/1-2.png", 9)
    return words


@row("site-0.jsonl has 11 classes \\(camvid\\), the run has 2 \\(crackforest\\); use one class table")
def network_of_sites_with_another_class_table(shop: Workshop) -> Words:
    words = network(shop)
    write_partition(shop, "camvid")
    return words


@row("site-0.jsonl calls a class 'crack' .* that the run calls 'road'")
def network_of_sites_with_classes_in_another_order(shop: Workshop) -> Words:
    words = network(shop)
    write_partition(shop, "crackforest", swapped=True)
    return words


def styles(shop: Workshop, **settings: object) -> Words:
    """A bank of an earlier run is handed over; that run's styles were of 16 x 16 pixels."""
    made = load_config({"style.transfer": "fourier", "style.height": 16, "style.width": 16}).style
    bank = StyleBank.of(made, {"site-0": np.ones(style_shape(made), np.float32)})
    bank.save(shop.tmp / "styles.safetensors")
    given = {"style__transfer": "fourier", "source__styles": str(shop.tmp / "styles.safetensors")}
    return adaptation(shop, **given | settings)


@row("holds 'fourier' styles of a 3 x 3 window at 16 x 16 pixels; the settings ask for .* at 20 x 16 pixels")
def network_styles_of_another_size(shop: Workshop) -> Words:
    return styles(shop, style__height=20)


@row("holds 'fourier' styles .*; the settings ask for 'lab' styles; take the styles again")
def network_styles_of_another_transfer(shop: Workshop) -> Words:
    return styles(shop, style__transfer="lab")


@row("The style bank .*gone.safetensors does not exist; give the styles.safetensors of a run")
def network_styles_that_are_not_there(shop: Workshop) -> Words:
    return styles(shop, source__styles=str(shop.tmp / "gone.safetensors"))


@row("style bank .*images/e-0.png cannot be read .*; take the styles again")
def network_styles_that_are_none(shop: Workshop) -> Words:
    return styles(shop, source__styles=str(shop.shards / "images/e-0.png"))


@row(
    "source.styles is '.*', styles to pretrain in, but source.checkpoint names a model that is pretrained already"
)
def network_styles_for_a_model_that_is_pretrained(shop: Workshop) -> Words:
    return styles(shop, source__checkpoint=str(shop.checkpoint))


@row("source.styles is '.*', styles to pretrain in, but style.transfer is 'none'")
def network_styles_that_nobody_takes_on(shop: Workshop) -> Words:
    return styles(shop, style__transfer="none")


@row("source.styles is '.*', styles to pretrain in, but task 'supervised' does not pretrain; set it to ''")
def network_styles_for_training_with_labels(shop: Workshop) -> Words:
    return styles(shop, task="supervised")


@row("alone in a batch \\(3 images, local.batch = 1\\), a single feature at output stride 32")
def network_image_of_one_feature_alone_in_a_batch(shop: Workshop) -> Words:
    return network(shop, local__batch=1)


@row("alone in a batch \\(1 images, local.batch = 2\\), a single feature at output stride 32")
def network_only_image_of_one_feature(shop: Workshop) -> Words:
    words = network(shop, local__batch=2)
    shop.write_manifest("site-0", [{"image": "images/0-0.png", "label": "labels/0-0.png"}])
    return words


@row("0-0.png is the only image of site-0 and 32 x 24 pixels are a single feature at output stride 32")
def network_statistics_of_one_small_image(shop: Workshop) -> Words:
    words = adaptation(shop, network__site_statistics=0.5, network__freeze="batchnorm")
    shop.write_manifest("site-0", [{"image": "images/0-0.png"}])
    return words


@row("Weights file .*gone.safetensors does not exist")
def network_missing_weights(shop: Workshop) -> Words:
    return network(shop, network__weights=str(shop.tmp / "gone.safetensors"))


@row("Setting 'reduction.kind' is 'mean-per-class'")
def network_unknown_reduction(shop: Workshop) -> Words:
    return network(shop, reduction__kind="mean-per-class")


@row("(?i)class 'pole'")
def network_crucial_class_that_is_none(shop: Workshop) -> Words:
    return network(shop, reduction__kind="weighted", reduction__crucial="pole")


@row("clusters.exact is 3 and needs 3 sites, but there are 2; lower it, or set clusters.layers to 'none'")
def network_fewer_sites_than_clusters(shop: Workshop) -> Words:
    return network(shop, clusters__layers="decoder", clusters__exact=3)


@row("clusters.smallest is 2 and needs 3 sites, but there are 2")
def network_too_few_sites_to_search_clusters(shop: Workshop) -> Words:
    return network(shop, clusters__layers="decoder")


@row("aggregation.optimizer is 'adam', but clusters.layers is 'all'; a server optimizer .*; set it to 'none'")
def network_clusters_with_a_server_optimiser(shop: Workshop) -> Words:
    return network(shop, clusters__layers="all", clusters__exact=2, aggregation__optimizer="adam")


@row("aggregation.rule is 'median', but clusters.layers is 'bn'; .*; set it to 'mean'")
def network_clusters_with_a_robust_rule(shop: Workshop) -> Words:
    return network(shop, clusters__layers="bn", clusters__exact=2, aggregation__rule="median")


@row("clusters.layers is 'bn', but network.batchnorm is 'local'.*; change one of the two")
def network_clusters_of_what_sites_keep(shop: Workshop) -> Words:
    return network(shop, clusters__layers="bn", clusters__exact=2, network__batchnorm="local")


@row("clusters.layers is 'all', but centroids.share is 'none'.*; set it to 'none'")
def network_clusters_of_sites_that_share_nothing(shop: Workshop) -> Words:
    return network(shop, clusters__layers="all", clusters__exact=2, centroids__share="none")


@row("teacher.update is 'mean', a copy of the shared model, but centroids.share is 'none'; set it to 'never'")
def network_teacher_of_sites_that_share_nothing(shop: Workshop) -> Words:
    return adaptation(shop, centroids__share="none", teacher__update="mean")


@row("teacher.update is 'student', but teacher.view or teacher.mirror .*; leave them at 'same' and false")
def network_student_with_a_teachers_view(shop: Workshop) -> Words:
    return adaptation(shop, teacher__update="student", teacher__view="plain")


@row("centroids.share is 'head', but a network of task 'supervised' has no centroids")
def network_shares_a_head(shop: Workshop) -> Words:
    return network(shop, centroids__share="head")


@row(
    "aggregation.keep-least-moved is true, which acts in tasks? .*'unsupervised'.* alone, but task is 'supervised'"
)
def network_keeps_the_least_moved(shop: Workshop) -> Words:
    return network(shop, aggregation__keep_least_moved=True)


@row("privacy.clip-norm is 1.0, which acts in tasks? .*'unsupervised'.* alone, .*; leave it at 0.0")
def network_with_a_bound_that_bounds_nothing(shop: Workshop) -> Words:
    return network(shop, privacy__clip_norm=1.0)


@row(
    "eval.crf is true, which acts in tasks? .*'unsupervised'.* alone, .*; leave it at false and use .*evaluate --crf"
)
def network_scored_with_a_crf(shop: Workshop) -> Words:
    return network(shop, eval__crf=True)


@row("local.lr is 0.1, which acts in tasks? .*'unsupervised'.* alone, .*; leave it at 0.0005 and use sgd.lr")
def network_with_the_learning_rate_of_a_head(shop: Workshop) -> Words:
    return network(shop, local__lr=0.1)


@row("sgd.lr is 0.1, which acts in tasks .*'supervised'.* alone, .*; leave it at 0.05 and use local.lr")
def head_with_the_learning_rate_of_a_network(shop: Workshop) -> Words:
    return shop.simulate(sgd__lr=0.1)


@row("eval.jsonl names images without labels; scores of task 'supervised' need them all")
def network_scored_without_labels(shop: Workshop) -> Words:
    words = network(shop)
    shop.write_manifest("eval", [{"image": "images/e-0.png"}])
    return words


def ignore_everything(shop: Workshop, *names: str) -> None:
    for name in names:
        Image.new("L", (32, 24), color=255).save(shop.shards / f"labels/{name}.png")


@row(
    "Every pixel in the label maps of .*eval.jsonl is ignored by the class table 'crackforest'; choose the table"
)
def network_scored_on_ignored_pixels_alone(shop: Workshop) -> Words:
    words = network(shop)
    ignore_everything(shop, "e-0", "e-1")
    return words


@row("Every pixel in the label maps of .*site-1.jsonl is ignored by .*, or leave the shard out")
def network_of_a_site_whose_pixels_are_ignored(shop: Workshop) -> Words:
    words = network(shop)
    ignore_everything(shop, "1-0", "1-1", "1-2")
    return words


@row("Every pixel in the label maps of .*eval.jsonl is ignored")
def adaptation_from_a_source_whose_pixels_are_ignored(shop: Workshop) -> Words:
    words = adaptation(shop, eval__shard="")
    ignore_everything(shop, "e-0", "e-1")
    return words


@row("Every pixel in the label maps of .*eval.jsonl is ignored")
def head_scored_on_ignored_pixels_alone(shop: Workshop) -> Words:
    ignore_everything(shop, "e-0", "e-1")
    return shop.simulate(eval__shard="eval.jsonl")


@row("eval.shard names two manifests called eval; rename one")
def network_scored_twice_on_one_set(shop: Workshop) -> Words:
    return network(shop, eval__shard="eval.jsonl, eval.jsonl")


@row("eval.where is 'sites' but eval.shard is empty; name their labelled manifests")
def network_scored_on_sites_without_a_shard(shop: Workshop) -> Words:
    return network(shop, eval__where="sites", eval__shard="")


@row("The manifest .*site-0-val.jsonl does not exist")
def network_scored_on_sites_with_a_missing_shard(shop: Workshop) -> Words:
    return network(shop, eval__where="sites", eval__shard="{site}-val.jsonl")


@row(
    "0-1.png has 40 x 24 pixels and .*0-0.png 32 x 24, but transforms.crop is 'none' and a batch needs one size"
)
def network_images_that_cannot_be_stacked(shop: Workshop) -> Words:
    words = network(shop, transforms__crop="none")
    save_picture(shop.shards / "images/0-1.png", size=(24, 40))
    save_label(shop.shards / "labels/0-1.png", size=(24, 40))
    return words


@row("0-1.png is 40 x 24 but its label map .* is 32 x 24 pixels; make both the same size")
def network_label_of_another_size(shop: Workshop) -> Words:
    words = network(shop)
    save_picture(shop.shards / "images/0-1.png", size=(24, 40))
    return words


@row("The checkpoint .*round-0001.safetensors holds another network than the settings ask for")
def network_resumed_from_another_model(shop: Workshop) -> Words:
    return [*network(shop), "--resume", shop.checkpoint]


@row(
    "Task 'adaptation' starts from a pretrained model and none is named: set source.checkpoint, or source.shard"
)
def adaptation_without_a_source(shop: Workshop) -> Words:
    return adaptation(shop, source__shard="")


@row("1 of 2 images of .*eval.jsonl have no label, but a source is trained on with labels; add the labels")
def adaptation_source_without_labels(shop: Workshop) -> Words:
    words = adaptation(shop, eval__shard="")
    shop.write_manifest(
        "eval", [{"image": "images/e-0.png", "label": "labels/e-0.png"}, {"image": "images/e-1.png"}]
    )
    return words


@row("The manifest .*gone.jsonl does not exist")
def adaptation_missing_source(shop: Workshop) -> Words:
    return adaptation(shop, source__shard="gone.jsonl")


@row("teacher.confidence is 1, and teacher.fraction is 0, so that no pixel is believed")
def adaptation_that_believes_nothing(shop: Workshop) -> Words:
    return adaptation(shop, teacher__confidence=1, teacher__fraction=0)


@row("teacher.weight is 0, like distill-weight, .* would learn nothing; raise one of them")
def adaptation_without_a_loss(shop: Workshop) -> Words:
    return adaptation(shop, teacher__weight=0)


@row("source.checkpoint .*round-0001.safetensors holds another network .* pretrain with this recipe")
def adaptation_from_a_model_of_another_architecture(shop: Workshop) -> Words:
    return adaptation(shop, source__checkpoint=str(shop.checkpoint))


@row("Checkpoint .*gone.safetensors does not exist")
def adaptation_from_a_model_that_is_gone(shop: Workshop) -> Words:
    return adaptation(shop, source__checkpoint=str(shop.tmp / "gone.safetensors"))


@row("The settings do not fit together: style.side is 4; expected an odd number of bins|is .*style.side is 4")
def adaptation_window_that_has_no_middle(shop: Workshop) -> Words:
    return adaptation(shop, style__transfer="fourier", style__side=4)


@row(r"e-0.png has \d+ x \d+ pixels, but the style window has 41 x 41 frequencies.*choose a smaller window")
def adaptation_window_larger_than_a_source_image(shop: Workshop) -> Words:
    return adaptation(shop, style__transfer="fourier", style__side=41, style__height=64, style__width=64)


@row("Setting 'sgd.nesterov' is True but always False in this version; leave it out")
def a_setting_that_became_a_constant(shop: Workshop) -> Words:
    return network(shop, sgd__nesterov=True)


@row("network.site-statistics is 0.5, for a network that was pretrained elsewhere, but task is 'supervised'")
def statistics_of_sites_with_labels(shop: Workshop) -> Words:
    return network(shop, network__site_statistics=0.5)


@row("network.final-statistics is true, but task is 'adaptation'; set it to false")
def final_statistics_of_an_adaptation(shop: Workshop) -> Words:
    return adaptation(shop, network__final_statistics=True)


@row("network.final-statistics is true, but rounds is 1 and the last one takes no step; set it to false")
def final_statistics_of_the_only_round(shop: Workshop) -> Words:
    return network(shop, network__final_statistics=True, rounds=1)


@row("network.final-statistics is true, but sites keep their statistics to themselves")
def final_statistics_that_nobody_may_see(shop: Workshop) -> Words:
    return network(shop, network__final_statistics=True, network__batchnorm="local-statistics", rounds=2)


@row("network.final-statistics is true, but network.freeze is 'batchnorm', which keeps those received")
def final_statistics_of_frozen_batch_norms(shop: Workshop) -> Words:
    return network(shop, network__final_statistics=True, network__freeze="batchnorm", rounds=2)


@row("The recipe's task is 'supervised'; pretraining belongs to task 'adaptation'")
def pretrain_another_task(shop: Workshop) -> Words:
    return network(shop, "pretrain")


@row("1 of 2 images of .*eval.jsonl have no label, but a source is trained on with labels")
def pretrain_source_without_labels(shop: Workshop) -> Words:
    words = adaptation(shop, "pretrain", eval__shard="")
    shop.write_manifest(
        "eval", [{"image": "images/e-0.png", "label": "labels/e-0.png"}, {"image": "images/e-1.png"}]
    )
    return words


@row("clusters.exact is 5 and needs 5 sites, but there are 2")
def pretrain_fewer_sites_than_clusters(shop: Workshop) -> Words:
    return adaptation(shop, "pretrain", clusters__layers="all", clusters__exact=5)


@row("No shards were given; use --shards DIR")
def pretrain_without_shards(shop: Workshop) -> Words:
    return ["server", "pretrain", "--set=task=adaptation"]


# --- python -m server evaluate, segment, export, report -------------------------------------------------


def evaluate(shop: Workshop, *words: object) -> Words:
    base: Words = ["server", "evaluate", "--checkpoint", shop.checkpoint, "--classes", "crackforest"]
    return [*base, "--shard", shop.shards / "eval.jsonl", "--json", shop.out, *words]


@row("Missing option .--checkpoint")
def evaluate_without_a_checkpoint(shop: Workshop) -> Words:
    return ["server", "evaluate", "--shard", shop.shards / "eval.jsonl"]


@row("shards holds no checkpoint; give a run directory")
def evaluate_folder_without_checkpoint(shop: Workshop) -> Words:
    return evaluate(shop, "--checkpoint", shop.shards)


@row("Checkpoint .*round-0001.json does not exist")
def evaluate_half_a_checkpoint(shop: Workshop) -> Words:
    shop.checkpoint.with_suffix(".json").unlink()
    return evaluate(shop)


@row("Checkpoint .* cannot be read")
def evaluate_truncated_checkpoint(shop: Workshop) -> Words:
    truncate(shop.checkpoint)
    return evaluate(shop)


@row("does not match its JSON")
def evaluate_mixed_up_checkpoint(shop: Workshop) -> Words:
    change_sidecar(shop, arrays_sha256="0" * 64)
    return evaluate(shop)


@row("is not a checkpoint of this program")
def evaluate_checkpoint_of_another_program(shop: Workshop) -> Words:
    change_sidecar(shop, format="other")
    return evaluate(shop)


@row("has settings that this version does not accept: .*wings")
def evaluate_checkpoint_of_another_version(shop: Workshop) -> Words:
    config = json.loads(shop.checkpoint.with_suffix(".json").read_text())["config"]
    change_sidecar(shop, config=config | {"wings": 2})
    return evaluate(shop)


@row("was trained on the backbone weights 000000000000 but")
def evaluate_checkpoint_of_another_model(shop: Workshop) -> Words:
    change_sidecar(shop, weights_sha256="0" * 64)
    return evaluate(shop)


@row("The manifest .*gone.jsonl does not exist")
def evaluate_missing_shard(shop: Workshop) -> Words:
    return evaluate(shop, "--shard", shop.shards / "gone.jsonl")


@row("shards is a folder; give one manifest in it")
def evaluate_folder_as_shard(shop: Workshop) -> Words:
    return evaluate(shop, "--shard", shop.shards)


@row("no class table 'camvidd'")
def evaluate_unknown_class_table(shop: Workshop) -> Words:
    return evaluate(shop, "--classes", "camvidd")


@row("holds the value 9, which class table 'crackforest'")
def evaluate_label_value_out_of_range(shop: Workshop) -> Words:
    save_label(shop.shards / "labels/e-0.png", 9)
    return evaluate(shop)


@row("e-1.png is damaged or truncated")
def evaluate_truncated_image(shop: Workshop) -> Words:
    truncate(shop.shards / "images/e-1.png")
    return evaluate(shop)


@row("The features need .* bytes .*/cache, where 1000 bytes are free; make room")
def evaluate_disk_full_while_caching(shop: Workshop) -> Words:
    fill_disk(shop)
    return evaluate(shop)


@row("Cannot write .*out.json")
def evaluate_result_that_cannot_be_written(shop: Workshop) -> Words:
    (shop.tmp / "file").touch()
    return evaluate(shop, "--json", shop.tmp / "file" / "out.json")


def probe(shop: Workshop, *words: object) -> Words:
    """Fit on the two labelled images' copies, score on the images themselves."""
    for i in range(2):
        save_picture(shop.shards / f"images/f-{i}.png", seed=i)
    entries = [{"image": f"images/f-{i}.png", "label": f"labels/e-{i}.png"} for i in range(2)]
    shop.write_manifest("fit", entries)
    base: Words = ["server", "probe", "--checkpoint", shop.checkpoint, "--classes", "crackforest"]
    return [
        *base,
        *("--train", shop.shards / "fit.jsonl", "--test", shop.shards / "eval.jsonl"),
        *("--json", shop.out, *words),
    ]


@row("Missing option .--(checkpoint|test)")
def probe_without_a_checkpoint(shop: Workshop) -> Words:
    return ["server", "probe", "--train", shop.shards / "eval.jsonl"]


@row("'--steps': 0 is not")
def probe_of_no_steps(shop: Workshop) -> Words:
    return probe(shop, "--steps", "0")


@row("site-0.jsonl names no label; a linear probe is fitted and scored with labels")
def probe_fitted_without_labels(shop: Workshop) -> Words:
    return probe(shop, "--train", shop.shards / "site-0.jsonl")


@row("site-0.jsonl names no label; a linear probe is fitted and scored with labels")
def probe_scored_without_labels(shop: Workshop) -> Words:
    return probe(shop, "--test", shop.shards / "site-0.jsonl")


@row("2 images of .*eval.jsonl are among those to fit on, the first is images/e-0.png; score on others")
def probe_scored_on_what_it_was_fitted_to(shop: Workshop) -> Words:
    return probe(shop, "--train", shop.shards / "fit.jsonl", shop.shards / "eval.jsonl")


@row("fit.jsonl names labels but no class table is known; name one")
def probe_without_a_class_table(shop: Workshop) -> Words:
    return [word for word in probe(shop) if word not in ("--classes", "crackforest")]


@row("The labels of fit show fewer than two classes")
def probe_of_one_class(shop: Workshop) -> Words:
    save_label(shop.shards / "labels/e-1.png", 0)
    return probe(shop)


@row("holds the value 9, which class table 'crackforest'")
def probe_label_value_out_of_range(shop: Workshop) -> Words:
    save_label(shop.shards / "labels/e-0.png", 9)
    return probe(shop)


@row("was trained on the backbone weights 000000000000 but")
def probe_checkpoint_of_another_model(shop: Workshop) -> Words:
    change_sidecar(shop, weights_sha256="0" * 64)
    return probe(shop)


@row("Recipe .*gone.toml does not exist")
def settings_of_a_missing_recipe(shop: Workshop) -> Words:
    return ["server", "settings", "--recipe", shop.tmp / "gone.toml"]


@row("Recipe .*r.toml is its own base")
def settings_of_a_recipe_on_itself(shop: Workshop) -> Words:
    (shop.tmp / "r.toml").write_text('base = "r"')
    return ["server", "settings", "--recipe", shop.tmp / "r.toml"]


def segment(shop: Workshop, *inputs: object) -> Words:
    return ["server", "segment", "--checkpoint", shop.checkpoint, "--out", shop.out, *inputs]


@row("gone.png does not exist; give pictures or folders of pictures")
def segment_missing_picture(shop: Workshop) -> Words:
    return segment(shop, shop.tmp / "gone.png")


@row("Folder .*empty holds no picture")
def segment_empty_folder(shop: Workshop) -> Words:
    (shop.tmp / "empty").mkdir()
    return segment(shop, shop.tmp / "empty")


@row("0-1.png is damaged or truncated")
def segment_truncated_picture_among_good_ones(shop: Workshop) -> Words:
    truncate(shop.shards / "images/0-1.png")
    return segment(shop, "--no-skip-unreadable", shop.shards / "images")


@row("would both be written as")
def segment_two_pictures_of_one_name(shop: Workshop) -> Words:
    save_picture(shop.tmp / "other" / "0-0.png")
    return segment(shop, shop.shards / "images" / "0-0.png", shop.tmp / "other" / "0-0.png")


@row("Cannot write .*file")
def segment_output_that_is_a_file(shop: Workshop) -> Words:
    (shop.tmp / "file").touch()
    return [*segment(shop, shop.shards / "images/0-0.png"), "--out", shop.tmp / "file"]


@row("Export needs the package onnx.*pip install")
def export_without_its_packages(shop: Workshop) -> Words:
    for name in ("onnx", "onnxruntime"):
        shop.monkeypatch.setitem(sys.modules, name, None)
    return ["server", "export", "--checkpoint", shop.checkpoint, "--out", shop.out]


@row("shards is no run directory: it holds no config.json")
def report_on_another_folder(shop: Workshop) -> Words:
    return ["server", "report", shop.shards]


@row("metrics.jsonl holds no round yet")
def report_on_a_run_without_rounds(shop: Workshop) -> Words:
    (shop.checkpoint.parents[1] / "config.json").write_text("{}")
    (shop.checkpoint.parents[1] / "metrics.jsonl").write_text("")
    return ["server", "report", shop.checkpoint.parents[1]]


@row("line 1 is not a record with a round")
def report_on_broken_metrics(shop: Workshop) -> Words:
    (shop.checkpoint.parents[1] / "config.json").write_text("{}")
    (shop.checkpoint.parents[1] / "metrics.jsonl").write_text('{"rou\n{"round": 2}\n')
    return ["server", "report", shop.checkpoint.parents[1]]


# --- python -m client -----------------------------------------------------------------------------------


@row("This site does not know its shard: give --node-config")
def check_without_a_shard(shop: Workshop) -> Words:
    return ["client", "check"]


@row("Unknown settings key 'local.bach': did you mean 'local.batch'")
def check_with_an_unknown_key(shop: Workshop) -> Words:
    return shop.check("--set", "local.bach=3")


@row("Site setting 'name' is 'our clinic'")
def check_with_a_name_that_cannot_be(shop: Workshop) -> Words:
    return shop.check("--site", "our clinic")


@row("The manifest .*gone.jsonl does not exist", after="wrong     manifest")
def check_missing_manifest(shop: Workshop) -> Words:
    return shop.check("--shard", shop.shards / "gone.jsonl")


@row("0-1.png is damaged or truncated", after="wrong     images")
def check_truncated_image(shop: Workshop) -> Words:
    truncate(shop.shards / "images/0-1.png")
    return shop.check()


@row("6 of 6 cannot be used", after="wrong     labels")
def check_missing_labels(shop: Workshop) -> Words:
    return shop.check("--labels", "--classes", "crackforest")


@row("site-0 holds 6 images, but local.batch = 9 needs at least 9", after="wrong     size")
def check_fewer_images_than_a_batch(shop: Workshop) -> Words:
    return shop.check("--set", "local.batch=9")


@row("Device 'gpu' is unknown", after="wrong     device")
def check_unknown_device(shop: Workshop) -> Words:
    return shop.check("--device", "gpu")


@row("Weights file .*gone.safetensors does not exist", after="wrong     weights")
def check_missing_weights(shop: Workshop) -> Words:
    return shop.check("--weights", shop.tmp / "gone.safetensors")


@row("features need .* MB but the disk of the cache folder", after="wrong     cache")
def check_full_disk(shop: Workshop) -> Words:
    fill_disk(shop)
    return shop.check()


@row("does not exist: nothing has left this site yet")
def egress_without_a_ledger(shop: Workshop) -> Words:
    return ["client", "egress", shop.shards]


@row("is no egress ledger of this program")
def egress_of_another_program(shop: Workshop) -> Words:
    (shop.tmp / "state").mkdir()
    (shop.tmp / "state" / "egress.jsonl").write_text('{"hello": 1}\n')
    return ["client", "egress", shop.tmp / "state"]


# --- the table is read here -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.name)
def test_refused_in_one_sentence(shop: Workshop, capfd: pytest.CaptureFixture[str], fault: Row) -> None:
    with shop.monkeypatch.context() as patch:
        shop.monkeypatch = patch  # faults of the system end before the test looks around
        words = fault.words(shop)
        before = shop.everything()
        code = run_command(words)
    printed = capfd.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.err + printed.out
    if fault.after == "error:":
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        said = printed.err
    else:
        assert printed.err == ""
        said = next((line for line in printed.out.splitlines() if line.startswith(fault.after)), printed.out)
    assert re.search(fault.sentence, said), said
    assert shop.everything() == before, "something was left behind"


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len(ROWS) >= 60 and len({fault.name for fault in ROWS}) == len(ROWS)


# --- what looks strange and has to work -----------------------------------------------------------------


def run_here(config: RunConfig, gpus_per_site: float) -> Path:
    """Stand in for Flower's engine: the same applications, without its processes."""
    sites = config.sites.expected
    nodes = {7 + i: {"partition-id": i, "num-partitions": sites} for i in range(sites)}
    return rounds.run(LocalGrid(client_app, nodes), config)


@pytest.fixture
def strange(shop: Workshop) -> Workshop:
    """One site whose six images are of six kinds."""
    shop.monkeypatch.setattr("server.simulate.run_in_flower", run_here)
    (shop.shards / "site-1.jsonl").unlink()
    for i, (mode, size) in enumerate(
        [
            ("L", (24, 32)),
            ("RGBA", (24, 32)),
            ("P", (24, 32)),
            ("1", (24, 32)),
            ("LA", (7, 90)),
            ("RGB", (50, 20)),
        ]
    ):
        save_picture(shop.shards / f"images/0-{i}.png", mode, size, i)
    return shop


def test_one_site_with_grey_transparent_and_odd_images_trains(strange: Workshop) -> None:
    assert run_command(strange.simulate()) == 0
    (line,) = [json.loads(text) for text in (strange.out / "metrics.jsonl").read_text().splitlines()]
    assert line["sites"] == ["site-0"] and 0 < line["miou"] < 1 and np.isfinite(line["loss"])
    assert load_checkpoint(strange.out).round == 1


def test_grey_transparent_and_odd_images_are_split_checked_and_segmented(
    strange: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(strange.check()) == 0
    assert "site site-0 is ready" in capfd.readouterr().out
    assert run_command(split(strange, "--by", "iid", "--sites", "1")) == 0
    masks = strange.tmp / "masks"
    assert run_command([*segment(strange, strange.shards / "images"), "--out", masks]) == 0
    assert (masks / "labels" / "0-4.png").is_file()


def test_evaluation_writes_the_figures_it_prints(shop: Workshop) -> None:
    assert run_command(evaluate(shop)) == 0
    assert 0 <= json.loads(shop.out.read_text())["miou"] <= 1


# --- real processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["partitions", "folder", "--root", "gone", "--out", "out"], "is no folder"),
        (["server", "simulate", "--recipe", "recipes/gone.toml"], "does not exist"),
        (["client", "check", "--set", "rounds=many"], "Setting 'rounds' is 'many'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_real_process_ends_the_same_way(tmp_path: Path, words: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
