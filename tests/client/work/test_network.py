"""What does a site answer when a whole network is trained, and what does it refuse?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.site import SiteConfig
from client.work.base import site_task
from client.work.network import task_classes
from common import wire
from common.data.classes import load_table
from common.data.data_loader import ImageDataset
from common.data.images import entry_image, entry_pair, read_image
from common.data.manifest import Shard, read_shard
from common.errors import UserError
from common.evaluation.networks import evaluate_network, predict_pixels
from common.losses.reductions import reduce_cross_entropy
from common.models.network import build_network, network_signature, network_to_arrays
from common.seeds import derive
from common.settings.load import to_wire
from common.settings.schema import RunConfig
from common.styles.style import extract_style
from common.training.batchnorm import blend_statistics, whole_images
from common.training.steps import Anchor
from tests.support.federation import network_config
from tests.support.scenes import copy_to_change
from tests.support.training import train_anew, without_times

pytestmark = pytest.mark.usefixtures("narrow")

SYNTHETIC = load_table("synthetic")

CLASSES = SYNTHETIC.num_classes


def answer_hello(given: wire.Task, config: RunConfig, here: SiteConfig) -> wire.Update:
    return site_task(config).hello(given, config, here)


def answer_style(given: wire.Task, config: RunConfig, here: SiteConfig) -> wire.Update:
    return site_task(config).style(given, config, here)


def answer_train(given: wire.Task, config: RunConfig, here: SiteConfig) -> wire.Update:
    return site_task(config).train(given, config, here)


def answer_evaluate(given: wire.Task, config: RunConfig, here: SiteConfig) -> wire.Update:
    return site_task(config).evaluate(given, config, here)


def settings(scenes: Path, folder: Path, **changes: Any) -> RunConfig:
    return network_config(scenes, folder, **changes)


def site(scenes: Path, folder: Path, *names: str, **changes: Any) -> SiteConfig:
    shards = tuple(scenes / f"{name}.jsonl" for name in names or ("site-0",))
    return SiteConfig(
        name="north", shards=shards, cache_dir=folder, state_dir=folder, device="cpu", **changes
    )


def task(
    config: RunConfig,
    number: int = 1,
    groups: wire.Groups | None = None,
    classes: int = CLASSES,
    **options: Any,
) -> wire.Task:
    given: wire.Options = {"classes": classes, "class-names": json.dumps(SYNTHETIC.names)}
    return wire.Task(number, to_wire(config), "run", groups or {}, given | options)


def network(config: RunConfig, seed: int = 4) -> wire.Groups:
    weights, statistics = network_to_arrays(build_network(CLASSES, config.network, seed))
    return {"weights": weights, "statistics": statistics}


def same(one: wire.Groups, other: wire.Groups) -> bool:
    return all(np.array_equal(one[group][key], other[group][key]) for group in one for key in one[group])


def rewritten(scenes: Path, folder: Path, **changes: Any) -> Path:
    """Return a copy of the scenes whose ``partition.json`` differs."""
    return copy_to_change(scenes, folder / "copy", **changes)


# --- greeting and style ---------------------------------------------------------------------------------


def test_a_greeting_tells_size_and_architecture_and_nothing_else(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    found = answer_hello(task(config), config, site(scenes, tmp_path))
    assert found.groups == {} and found.metrics == {}
    assert found.facts == {"images": 10, "channels": CLASSES, "grid-height": 64, "grid-width": 64}
    assert found.weights_hash == network_signature(CLASSES, config.network)
    assert task_classes(task(config)) == CLASSES


@pytest.mark.parametrize("answer", [answer_hello, answer_train])
def test_supervised_training_needs_labels_of_the_servers_classes(
    scenes: Path, tmp_path: Path, answer: Any
) -> None:
    config = settings(scenes, tmp_path)
    names = list(SYNTHETIC.names)
    described = json.loads((scenes / "partition.json").read_text())["classes"]
    swapped = described | {"names": [names[1], names[0], *names[2:]]}
    here = site(rewritten(scenes, tmp_path / "swapped", classes=swapped), tmp_path)
    with pytest.raises(UserError, match=f"north calls a class '{names[1]}' .* the server calls '{names[0]}'"):
        answer(task(config), config, here)
    with pytest.raises(UserError, match=r"labels of 8 classes \(synthetic\), the server trains 11"):
        answer(task(config, classes=11), config, site(scenes, tmp_path))
    no_table = site(rewritten(scenes, tmp_path / "none", classes=None), tmp_path)
    with pytest.raises(UserError, match="north has labels but no class table"):
        answer(task(config), config, no_table)


def test_a_table_that_the_run_names_serves_a_site_without_one(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path, eval__classes="synthetic")
    here = site(rewritten(scenes, tmp_path, classes=None), tmp_path)
    assert answer_hello(task(config), config, here).facts["images"] == 10


def test_an_unlabelled_site_is_refused_before_training_and_welcome_to_adapt(
    scenes: Path, tmp_path: Path
) -> None:
    copy = rewritten(scenes, tmp_path)
    images = [json.loads(line)["image"] for line in (copy / "site-0.jsonl").read_text().splitlines()]
    (copy / "site-0.jsonl").write_text("".join(json.dumps({"image": image}) + "\n" for image in images))
    here, config = site(copy, tmp_path), settings(scenes, tmp_path)
    with pytest.raises(
        UserError, match="10 of 10 images of north have no label; task 'supervised' needs one"
    ):
        answer_hello(task(config), config, here)
    adapting = settings(scenes, tmp_path, task="adaptation")
    assert answer_hello(task(adapting), adapting, here).facts["images"] == 10


@pytest.mark.parametrize("transfer", ["none", "fourier", "lab"])
def test_a_style_is_the_mean_over_the_sites_images(scenes: Path, tmp_path: Path, transfer: str) -> None:
    config = settings(scenes, tmp_path, style__transfer=transfer)
    found = answer_style(task(config), config, site(scenes, tmp_path))
    kind = config.style.model_copy(update={"transfer": "fourier" if transfer == "none" else transfer})
    shard = read_shard(scenes / "site-0.jsonl")
    each = [extract_style(read_image(shard.image_path(index)), kind) for index in range(len(shard))]
    assert list(found.groups) == ["style"] and list(found.groups["style"]) == ["style"]
    np.testing.assert_allclose(found.groups["style"]["style"], np.mean(each, axis=0), rtol=1e-5)


def test_the_style_of_a_view_is_that_of_its_part_of_the_photo(scenes: Path, tmp_path: Path) -> None:
    copy = rewritten(scenes, tmp_path)
    image = json.loads((copy / "site-0.jsonl").read_text().splitlines()[0])["image"]
    (copy / "site-0.jsonl").write_text(json.dumps({"image": image, "view": "top-left"}) + "\n")
    config = settings(scenes, tmp_path, style__transfer="lab")
    found = answer_style(task(config), config, site(copy, tmp_path)).groups["style"]["style"]
    whole = read_image(read_shard(copy / "site-0.jsonl").image_path(0))
    part = whole[: whole.shape[0] // 2, : whole.shape[1] // 2]
    np.testing.assert_array_equal(found, extract_style(part, config.style))


# --- training -------------------------------------------------------------------------------------------


def test_a_round_is_training_from_what_was_received_at_its_place_in_the_run(
    scenes: Path, tmp_path: Path
) -> None:
    """Round 2 of 3, two epochs a round in batches of 4: steps 6 to 11 of 18, epochs 2 and 3."""
    config = settings(
        scenes,
        tmp_path,
        rounds=3,
        local__steps=0,
        local__epochs=2,
        local__batch=4,
        local__prox_mu=0.1,
        local__clip_norm=1.0,
        reduction__kind="weighted",
        network__freeze="decoder",
    )
    groups = network(config)
    given = task(config, 2, groups, crucial="1,3", trained=1)
    found = answer_train(given, config, site(scenes, tmp_path))

    shard = read_shard(scenes / "site-0.jsonl")
    pictures = ImageDataset(shard, config.transforms, (config.seed, "north"), True, shard.classes)
    batches = list(pictures.batches(6, 4, first_epoch=2))
    crucial = torch.zeros(CLASSES, dtype=torch.bool)
    crucial[[1, 3]] = True
    model = build_network(CLASSES, config.network, 4)
    trained = train_anew(
        model,
        iter(batches),
        lambda logits, labels: reduce_cross_entropy(logits, labels, config.reduction, crucial),
        config.sgd,
        steps=6,
        first_step=6,
        total_steps=18,
        seed=derive(config.seed, "train", "north", 2),
        freeze="decoder",
        anchor=Anchor(0.1, groups["weights"]),
        clip_norm=1.0,
    )
    weights, statistics = network_to_arrays(model)
    assert same(found.groups, {"weights": weights, "statistics": statistics})
    assert without_times(found.metrics) == {
        "loss": trained.loss + trained.prox,
        "prox": trained.prox,
        "steps": 6.0,
    }
    assert found.facts["images"] == 10 and found.facts["batches"] == 3
    assert trained.prox > 0


def test_rounds_shorter_than_an_epoch_go_on_where_the_last_one_stopped(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(scenes, tmp_path, rounds=10, local__steps=1, local__batch=4)
    read: list[int] = []
    real = ImageDataset._stack

    def spy(self: ImageDataset, visits: list[tuple[int, int]], samples: Any) -> Any:
        read.extend(index for _, index in visits)
        return real(self, visits, samples)

    monkeypatch.setattr(ImageDataset, "_stack", spy)
    for trained, number in enumerate((1, 4, 7)):  # drawn for every third round
        answer_train(task(config, number, network(config), trained=trained), config, site(scenes, tmp_path))
    assert sorted(read) == list(range(10))


def test_adaptation_drops_the_paths_of_labels(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageDataset] = []
    real = ImageDataset.batches

    def spy(self: ImageDataset, *arguments: Any, **options: Any) -> Any:
        seen.append(self)
        return real(self, *arguments, **options)

    def closed(*_: object) -> None:
        raise AssertionError("a label was opened")

    monkeypatch.setattr(ImageDataset, "batches", spy)
    monkeypatch.setattr("common.data.images.read_raw_label", closed)
    config = settings(scenes, tmp_path, task="adaptation", teacher__update="student")
    found = answer_train(task(config, 1, network(config)), config, site(scenes, tmp_path))
    (pictures,) = seen
    assert [entry.label for entry in pictures.shard.entries] == [None] * 10
    with pytest.raises(PermissionError):
        pictures.label(0)
    assert found.metrics["steps"] == 1 and 0 < found.metrics["kept"] <= 1
    assert found.facts["holds"] == ""
    assert not same(found.groups, network(config))


def test_no_phase_of_an_adaptation_is_given_the_paths_of_labels(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics and styles are taken from shards that name none, so that no later change can open one."""
    seen: list[Shard] = []

    def images(shard: Shard, *arguments: Any) -> Any:
        seen.append(shard)
        return whole_images(shard, *arguments)

    def image(shard: Shard, index: int) -> Any:
        seen.append(shard)
        return entry_image(shard, index)

    monkeypatch.setattr("client.work.network.whole_images", images)
    monkeypatch.setattr("client.work.network.entry_image", image)
    config = settings(scenes, tmp_path, task="adaptation", network__site_statistics=0.5, rounds=2)
    answer_train(task(config, 1, network(config)), config, site(scenes, tmp_path))
    assert len(seen) == 1
    answer_style(task(config, 0, {}), config, site(scenes, tmp_path))
    assert len(seen) == 11
    assert all(entry.label is None for shard in seen for entry in shard.entries)


def test_the_first_round_may_measure_statistics_and_the_steps_come_after_it(
    scenes: Path, tmp_path: Path
) -> None:
    """No step in round 1; rounds 2 and 3 are then at the places of rounds 1 and 2 of a run without it."""
    given: dict[str, Any] = {"task": "adaptation", "teacher__update": "student", "local__steps": 2}
    given["network__dropout"] = 0.0  # drawn by the round's number
    config = settings(scenes, tmp_path, rounds=3, network__site_statistics=0.5, **given)
    groups = network(config)
    found = answer_train(task(config, 1, groups), config, site(scenes, tmp_path))
    measured = build_network(CLASSES, config.network, 4)
    shard = read_shard(scenes / "site-0.jsonl")
    blend_statistics(measured, whole_images(shard, config.transforms), 0.5)
    weights, statistics = network_to_arrays(measured)
    assert same(found.groups, {"weights": weights, "statistics": statistics})
    assert without_times(found.metrics) == {} and found.facts["images"] == 10

    plain = settings(scenes, tmp_path, rounds=2, **given)
    later = answer_train(task(config, 2, groups), config, site(scenes, tmp_path))
    first = answer_train(task(plain, 1, groups), plain, site(scenes, tmp_path))
    assert later.metrics["steps"] == 2
    assert same(later.groups, first.groups)


def test_the_last_round_may_measure_statistics_of_the_final_network_alone(
    scenes: Path, tmp_path: Path
) -> None:
    """Round 3 takes no step and sends no weight; round 2 is the last one of the schedule."""
    given: dict[str, Any] = {"local__steps": 2, "sgd__schedule": "poly"}
    config = settings(scenes, tmp_path, rounds=3, network__final_statistics=True, **given)
    groups = network(config)
    found = answer_train(task(config, 3, groups), config, site(scenes, tmp_path))
    measured = build_network(CLASSES, config.network, 4)
    shard = read_shard(scenes / "site-0.jsonl")
    blend_statistics(measured, whole_images(shard, config.transforms), 1.0)
    assert list(found.groups) == ["statistics"] and without_times(found.metrics) == {}
    assert same(found.groups, {"statistics": network_to_arrays(measured)[1]})
    assert found.facts["images"] == 10

    plain = settings(scenes, tmp_path, rounds=2, **given)
    before = answer_train(task(config, 2, groups), config, site(scenes, tmp_path))
    assert same(before.groups, answer_train(task(plain, 2, groups), plain, site(scenes, tmp_path)).groups)


def test_a_received_network_that_does_not_fit_is_named(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    groups = network(config)
    groups["statistics"]["backbone.0.1.running_var"] = groups["statistics"]["backbone.0.1.running_var"] - 9
    with pytest.raises(ValueError, match=r"'backbone\.0\.1\.running_var' holds a negative variance"):
        answer_train(task(config, 1, groups), config, site(scenes, tmp_path))


# --- scores on the site ---------------------------------------------------------------------------------


def test_a_site_mirrors_its_images_where_the_settings_say_so(scenes: Path, tmp_path: Path) -> None:
    here = site(scenes, tmp_path, eval_shard=scenes / "eval.jsonl")
    model = build_network(CLASSES, settings(scenes, tmp_path).network, 4).eval()
    shard = read_shard(scenes / "eval.jsonl")
    for flip in (False, True):
        config = settings(scenes, tmp_path, eval__flip=flip)
        found = answer_evaluate(task(config, 1, network(config)), config, here)
        assert shard.classes is not None
        expected = evaluate_network(lambda _: model, shard, shard.classes, config.transforms, flip=flip)
        assert np.array_equal(found.groups["confusion"]["confusion"], expected.confusion.matrix)


def test_scores_are_counts_of_the_sites_own_evaluation_shard(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    here = site(scenes, tmp_path, eval_shard=scenes / "eval.jsonl")
    found = answer_evaluate(task(config, 1, network(config)), config, here)
    counts = found.groups["confusion"]["confusion"]
    shard = read_shard(scenes / "eval.jsonl")
    model = build_network(CLASSES, config.network, 4).eval()
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for index in range(len(shard)):
        image, label = entry_pair(shard, index, SYNTHETIC)
        predicted = predict_pixels(model, image, config.transforms)
        for said, true in zip(predicted[label != 255].ravel(), label[label != 255].ravel(), strict=True):
            expected[said, true] += 1
    assert list(found.groups) == ["confusion"] and counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    assert found.facts["images"] == len(shard)


def test_a_site_without_labels_to_score_on_says_so(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tmp_path)
    given = task(config, 1, network(config))
    with pytest.raises(UserError, match="north has no labelled evaluation shard; set eval-shard"):
        answer_evaluate(given, config, site(scenes, tmp_path))
    other = task(config, 1, network(config), classes=11)
    with pytest.raises(UserError, match="the server trains 11"):
        answer_evaluate(other, config, site(scenes, tmp_path, eval_shard=scenes / "eval.jsonl"))
