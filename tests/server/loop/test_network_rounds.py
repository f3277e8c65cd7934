"""Do runs of whole networks keep their promises: reproducible, resumable, without labels, and hard to break?"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Error, Message

from common import wire
from common.checkpoint import Checkpoint, checkpoint_path, load_checkpoint
from common.data.classes import load_table
from common.data.data_loader import ImageDataset
from common.data.manifest import pool_shards, read_shard
from common.errors import UserError
from common.losses.reductions import reduce_cross_entropy
from common.models.network import build_network, network_to_arrays
from common.models.parameter_groups import batchnorm_keys, encoder_keys, split_flat, statistics_keys
from common.seeds import derive
from common.settings.network import Transforms
from common.wire import Arrays
from server.loop.run import run
from server.states import EVERYONE, NetworkState
from server.tasks.base import task_of
from tests.support.federation import last_hash, local_grid, metrics, network_config, same_arrays
from tests.support.local_grid import Answer, LocalGrid
from tests.support.scenes import copy_to_change
from tests.support.training import train_anew

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow")]

SYNTHETIC = load_table("synthetic")

SITES = 4
Real = Callable[[Message], Message]

ADAPTED: dict[str, Any] = {
    "task": "adaptation",
    "rounds": 3,
    "style__transfer": "fourier",
    "clusters__layers": "decoder",
    "clusters__exact": 2,
    "network__batchnorm": "local-statistics",
    "teacher__update": "mean",
    "teacher__distill_weight": 1.0,
    "eval__shard": "eval.jsonl",
}
"""All that a run of adaptation has to remember: styles, clusters, own statistics, mean teachers, the pretrained."""

SUPERVISED: dict[str, Any] = {
    "task": "supervised",
    "rounds": 3,
    "aggregation__optimizer": "adam",
    "aggregation__lr": 0.01,
    "local__prox_mu": 0.1,
    "sites__per_round": 3,
    "transforms__flip": 0.5,
    "sgd__schedule": "poly",
}
"""And of supervised training: the server optimiser's moments, the schedule's step, the sites of a round."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scenes: Path, narrow: None) -> dict[str, Path]:
    """The two runs above, from the first round to the last."""
    runs = {}
    for name, settings in (("adapted", ADAPTED), ("supervised", SUPERVISED)):
        folder = tmp_path_factory.mktemp(name)
        runs[name] = run(local_grid(SITES), network_config(scenes, folder, **settings))
    return runs


def settings_of(name: str) -> dict[str, Any]:
    return ADAPTED if name == "adapted" else SUPERVISED


def state_of(run_dir: Path, number: int | None = None) -> NetworkState:
    saved = load_checkpoint(run_dir if number is None else checkpoint_path(run_dir, number))
    return NetworkState.from_arrays(saved.head, saved.extra)


def node_of(grid: LocalGrid, site: int) -> int:
    return next(node for node, given in grid.node_configs.items() if given["partition-id"] == site)


def sent_to(grid: LocalGrid, site: int, number: int, action: str = wire.TRAIN) -> Message:
    """Return what a site was sent in a round."""
    found = [
        message
        for message in grid.sent
        if message.metadata.dst_node_id == node_of(grid, site)
        and message.metadata.message_type == action
        and message.metadata.group_id == str(number)
    ]
    assert len(found) == 1
    return found[0]


def heard(grid: LocalGrid, *sites: int) -> dict[int, list[Message]]:
    """Collect the answers of sites to the messages of rounds, as they are on the wire."""
    answers: dict[int, list[Message]] = {site: [] for site in sites}

    def listen(site: int) -> Callable[[Message, Real], Answer]:
        def answer(message: Message, real: Real) -> Answer:
            found = real(message)
            if message.metadata.message_type == wire.TRAIN:
                answers[site].append(found)
            return found

        return answer

    for site in sites:
        grid.faults[node_of(grid, site)] = listen(site)
    return answers


def option(message: Message, name: str) -> Any:
    return message.content.config_records["facts"].get(f"option.{name}")


# --- reproducible, resumable ----------------------------------------------------------------------------


def test_a_run_scores_checkpoints_and_reports(whole: dict[str, Path]) -> None:
    run_dir = whole["adapted"]
    found = metrics(run_dir)
    assert [line["round"] for line in found] == [1, 2, 3]
    for line in found:
        assert line["sites"] == [f"site-{i}" for i in range(SITES)] and line["quarantined"] == {}
        assert line["counted"] and np.isfinite(line["loss"]) and 0 < line["miou"] < 1
        assert set(line["sets"]) == {"eval"} and 0 < line["sets"]["eval"]["cluster_miou"] < 1
    assert (run_dir / "report.html").stat().st_size > 10_000
    names = {"round-0001.png", "round-0003.png", "styles.png"}
    assert {path.name for path in (run_dir / "pictures").iterdir()} == names
    kept = load_checkpoint(run_dir)
    assert kept.round == 3 and kept.channels == SYNTHETIC.num_classes and kept.classes == SYNTHETIC
    state = state_of(run_dir)
    assert state.averaged == 3 and sorted(state.clusters) == [0, 1]
    assert set(state.teachers) == {"0", "1", EVERYONE}
    assert set(state.private) == {f"site-{i}" for i in range(SITES)}
    assert (
        sum(len(names) for names in json.loads((run_dir / "clusters.json").read_text())["clusters"]) == SITES
    )


@pytest.mark.parametrize("name", ["adapted", "supervised"])
def test_neither_node_ids_nor_the_order_of_replies_change_the_result(
    tmp_path: Path, scenes: Path, whole: dict[str, Path], name: str
) -> None:
    grid = local_grid(SITES, shuffle=7)
    grid.reverse = True
    again = run(grid, network_config(scenes, tmp_path, **settings_of(name)))
    hashes = [[line["checkpoint_sha256"] for line in metrics(path)] for path in (again, whole[name])]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3


@pytest.mark.parametrize("name", ["adapted", "supervised"])
def test_a_run_that_is_resumed_after_round_1_ends_with_the_same_hash(
    tmp_path: Path, scenes: Path, whole: dict[str, Path], name: str
) -> None:
    shutil.copytree(whole[name], tmp_path / "run")
    start = checkpoint_path(tmp_path / "run", 1)
    config = network_config(scenes, tmp_path, resume=str(start), **settings_of(name))
    resumed = run(local_grid(SITES, shuffle=3), config)
    assert [line["round"] for line in metrics(resumed)] == [1, 2, 3]
    assert last_hash(resumed) == last_hash(whole[name])


def test_another_seed_gives_another_model(tmp_path: Path, scenes: Path, whole: dict[str, Path]) -> None:
    config = network_config(scenes, tmp_path, seed=1, **SUPERVISED | {"rounds": 1})
    first = metrics(whole["supervised"])[0]
    assert metrics(run(local_grid(SITES), config))[0]["checkpoint_sha256"] != first["checkpoint_sha256"]


def test_a_checkpoint_of_another_form_is_refused(
    tmp_path: Path, scenes: Path, whole: dict[str, Path]
) -> None:
    for change, sentence in (
        ({"clusters__layers": "bn"}, r"clusters\.layers = 'decoder', this run has 'bn'"),
        ({"network__batchnorm": "shared"}, r"network\.batchnorm = 'local-statistics'"),
        (
            {"task": "supervised", "teacher__update": "never", "teacher__distill_weight": 0.0},
            "task = 'adaptation', this run has 'supervised'",
        ),
    ):
        given = ADAPTED | change | {"resume": str(whole["adapted"])}
        with pytest.raises(UserError, match=sentence):
            run(local_grid(SITES), network_config(scenes, tmp_path, **given))


def test_one_site_is_centralised_training_bit_for_bit(tmp_path: Path, scenes: Path) -> None:
    """Two rounds of all images at one site are two trainings by hand, each with a new optimiser."""
    settings: dict[str, Any] = {
        "sites__pool": True,
        "local__steps": 2,
        "reduction__kind": "inverse-frequency",
    }
    config = network_config(scenes, tmp_path, 1, **settings)
    found = state_of(run(local_grid(1), config)).model

    shard = pool_shards([read_shard(scenes / f"site-{i}.jsonl") for i in range(SITES)], "pooled")
    pictures = ImageDataset(shard, config.transforms, (config.seed, "pooled"), True, shard.classes)
    model = build_network(SYNTHETIC.num_classes, config.network, config.seed)
    stream = pictures.batches(4, 2)
    for number in (1, 2):
        train_anew(
            model,
            stream,
            lambda logits, labels: reduce_cross_entropy(logits, labels, config.reduction),
            config.sgd,
            steps=2,
            first_step=2 * (number - 1),
            total_steps=4,
            seed=derive(config.seed, "train", "pooled", number),
        )
    weights, statistics = network_to_arrays(model)
    assert same_arrays(found, weights | statistics)


def test_every_image_is_read_in_every_epoch_across_rounds(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 images are 5 batches of 2; 5 rounds of 2 batches are two epochs, the second one in another order."""
    read: list[int] = []
    real = ImageDataset.batches

    def spy(self: ImageDataset, *arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in real(self, *arguments, **options):
            read.extend(batch.indices)
            yield batch

    monkeypatch.setattr(ImageDataset, "batches", spy)
    run(local_grid(1), network_config(scenes, tmp_path, 1, rounds=5, local__steps=2))
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]


def test_a_site_that_is_drawn_now_and_then_reads_all_of_its_images(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two a round, 5 batches each: who was in 5 rounds has read all 10 images, also over a resumed run."""
    read: dict[str, list[int]] = {}
    real = ImageDataset.batches

    def spy(self: ImageDataset, *arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in real(self, *arguments, **options):
            read.setdefault(self.shard.name, []).extend(batch.indices)
            yield batch

    monkeypatch.setattr(ImageDataset, "batches", spy)
    given: dict[str, Any] = {"rounds": 10, "local__steps": 1, "sites__per_round": 1, "eval__shard": ""}
    run(local_grid(2), network_config(scenes, tmp_path, 2, **given | {"rounds": 4}))
    resumed = network_config(scenes, tmp_path, 2, resume=str(tmp_path / "run"), **given)
    drawn = Counter(site for line in metrics(run(local_grid(2), resumed)) for site in line["sites"])
    assert state_of(tmp_path / "run").trained == drawn and max(drawn.values()) >= 5 > min(drawn.values())
    for name, images in read.items():
        assert len(images) == 2 * drawn[name]
        assert len(set(images[:10])) == min(10, len(images))


def test_a_checkpoint_that_counts_no_rounds_lets_sites_go_on_by_their_number(whole: dict[str, Path]) -> None:
    saved = load_checkpoint(whole["supervised"])

    def sent(checkpoint: Checkpoint) -> list[int]:
        work = task_of(saved.config).training(saved.config, saved.classes)
        state = work.restore(checkpoint)
        names = [f"site-{index}" for index in range(4)]
        return [int(work.parts(state, name, 4, wire.TRAIN)[1]["trained"]) for name in names]

    counted = sent(saved)  # three of four sites took part in each of three rounds
    assert sum(counted) == 9 and set(counted) != {3}
    older = replace(saved, extra={k: v for k, v in saved.extra.items() if not k.startswith("trained/")})
    assert sent(older) == [3] * 4


# --- labels, and what leaves a site ---------------------------------------------------------------------


def test_no_site_opens_a_label_in_adaptation(
    tmp_path: Path, scenes: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every label file gone, and no label read by anyone, the model is the same, bit for bit."""
    blind = tmp_path / "scenes"
    shutil.copytree(scenes, blind, ignore=shutil.ignore_patterns("cache"))
    root = blind / json.loads((blind / "partition.json").read_text())["root"]
    labels = [path for path in root.rglob("*.png") if "label" in str(path.parent)]
    assert len(labels) > 20
    start = checkpoint_path(whole["adapted"], 1)  # any checkpoint of this architecture serves
    given = ADAPTED | {"rounds": 1, "eval__shard": "", "source__checkpoint": str(start)}
    seeing = run(local_grid(SITES), network_config(scenes, tmp_path / "seeing", **given))
    for path in labels:
        path.unlink()

    def closed(*_: object) -> None:
        raise AssertionError("a label was opened")

    monkeypatch.setattr("common.data.images.read_raw_label", closed)
    unseeing = run(local_grid(SITES), network_config(blind, tmp_path / "blind", **given))
    assert metrics(unseeing)[0]["sites"] == [f"site-{i}" for i in range(SITES)]
    assert last_hash(unseeing) == last_hash(seeing)
    assert same_arrays(state_of(seeing).pretrained, load_checkpoint(start).head)


def test_supervised_training_refuses_a_site_without_labels(tmp_path: Path, scenes: Path) -> None:
    copy = copy_to_change(scenes, tmp_path / "scenes")
    manifest = copy / "site-1.jsonl"
    first, *rest = manifest.read_text().splitlines()
    manifest.write_text("\n".join([json.dumps({"image": json.loads(first)["image"]}), *rest]) + "\n")
    line = metrics(run(local_grid(SITES), network_config(copy, tmp_path, rounds=1)))[0]
    assert line["sites"] == ["site-0", "site-2", "site-3"]
    sentence = "1 of 10 images of site-1 have no label; task 'supervised' needs one for every image"
    assert line["quarantined"]["site-1"].startswith(sentence)


def test_a_site_with_other_classes_is_refused(
    tmp_path: Path, scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many classes in another order would be learned without a complaint; the site's own log names the class."""
    config = network_config(scenes, tmp_path, rounds=1)
    grid = local_grid(SITES)
    classes = json.loads((scenes / "partition.json").read_text())["classes"]
    names = classes["names"]
    swapped = classes | {"names": [names[1], names[0], *names[2:]]}
    copy = copy_to_change(scenes, tmp_path / "scenes", classes=swapped)
    stranger = node_of(grid, 2)
    grid.node_configs[stranger] = {"partition-id": 2, "site": "odd", "shard": str(copy / "site-2.jsonl")}
    line = metrics(run(grid, config))[0]
    assert line["sites"] == ["site-0", "site-1", "site-3"]
    assert line["quarantined"]["odd"] == "labels: a label, or its class table, cannot be used"
    assert f"odd calls a class '{names[1]}'" in caplog.text


def test_only_styles_and_networks_leave_a_site(whole: dict[str, Path]) -> None:
    ledgers = (whole["adapted"].parent / "cache" / "state").glob("*/egress.jsonl")
    found: dict[str, set[str]] = {}
    for ledger in ledgers:
        for text in ledger.read_text().splitlines():
            line = json.loads(text)
            found.setdefault(line["action"], set()).update(line["bytes"])
    account = {"facts", "metrics"}
    assert found == {
        wire.HELLO: account,
        wire.STYLE: account | {"style"},
        wire.TRAIN: account | {"weights", "statistics"},
    }


# --- teachers -------------------------------------------------------------------------------------------


def test_a_teacher_travels_once_and_again_to_a_site_that_lost_it(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    state_dir = tmp_path / "cache" / "state" / "site-1"
    kept: dict[str, list[str]] = {}

    def careless(message: Message, real: Real) -> Answer:
        files = sorted(state_dir.rglob("*.safetensors"))
        if message.metadata.message_type == wire.TRAIN:
            kept[message.metadata.group_id] = [path.stem for path in files]
            if message.metadata.group_id == "2":
                for path in files:
                    path.unlink()
        return real(message)

    grid.faults[node_of(grid, 1)] = careless
    run_dir = run(grid, network_config(scenes, tmp_path, task="adaptation", rounds=4))
    down = [line["bytes_down"] for line in metrics(run_dir)]
    reasons = [line["quarantined"] for line in metrics(run_dir)]
    for site in ("site-0", "site-2", "site-3"):
        assert down[0][site] > 1.9 * down[1][site] and down[1][site] == down[2][site] == down[3][site]
    assert list(reasons[1]) == ["site-1"] and "it will be sent again" in reasons[1]["site-1"]
    assert down[0]["site-1"] == down[2]["site-1"] > 1.9 * down[3]["site-1"]
    assert reasons[0] == reasons[2] == reasons[3] == {}
    teacher = option(sent_to(grid, 1, 1), "teacher")
    assert kept == {"1": [], "2": [teacher], "3": [], "4": [teacher]}
    assert not list((tmp_path / "cache" / "state").rglob("*.safetensors"))  # nobody needs it any more


def test_a_first_round_without_steps_moves_statistics_alone_and_the_teacher_learns_of_it(
    tmp_path: Path, scenes: Path
) -> None:
    grid = local_grid(SITES)
    changes = {"network__site_statistics": 0.5, "teacher__update": "rounds", "clusters__layers": "bn"}
    config = network_config(scenes, tmp_path, task="adaptation", rounds=2, clusters__exact=2, **changes)
    run_dir = run(grid, config)
    first, second = metrics(run_dir)
    assert first["loss"] is None and second["loss"] > 0 and first["counted"] and second["counted"]
    assert first["quarantined"] == second["quarantined"] == {}
    measured = state_of(run_dir, 1)
    assert len(measured.clusters) == 2
    for cluster in measured.clusters:
        before, after = measured.pretrained, measured.cluster_model(cluster)
        moved = {key for key in after if not np.allclose(before[key], after[key], rtol=1e-6, atol=1e-7)}
        assert moved and all(key.endswith(("running_mean", "running_var")) for key in moved)


def test_a_last_round_without_steps_asks_all_sites_for_the_statistics_alone(
    tmp_path: Path, scenes: Path
) -> None:
    changes = SUPERVISED | {"sites__per_round": 1, "network__final_statistics": True}
    run_dir = run(local_grid(SITES), network_config(scenes, tmp_path, **changes))
    _, second, third = metrics(run_dir)
    assert len(second["sites"]) == 1 and len(third["sites"]) == SITES
    assert third["counted"] and third["quarantined"] == {} and third["loss"] is None
    assert max(third["bytes_up"].values()) < min(second["bytes_up"].values()) / 5
    before, after = state_of(run_dir, 2), state_of(run_dir, 3)
    for key, value in after.model.items():
        same = np.array_equal(value, before.model[key])
        assert same != key.endswith(("running_mean", "running_var")), key
    for key, value in after.memory.items():
        np.testing.assert_array_equal(value, before.memory[key])


def test_two_clusters_have_two_teachers_and_a_disk_holds_only_its_own(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    kept: dict[str, list[str]] = {}
    state_dir = tmp_path / "cache" / "state" / "site-0"

    def watched(message: Message, real: Real) -> Answer:
        answer = real(message)
        if message.metadata.message_type == wire.TRAIN:
            files = state_dir.rglob("*.safetensors")
            kept[message.metadata.group_id] = sorted(path.stem for path in files)
        return answer

    grid.faults[node_of(grid, 0)] = watched
    given = ADAPTED | {"teacher__update": "rounds", "eval__shard": ""}
    state = state_of(run(grid, network_config(scenes, tmp_path, **given)))
    assert state.grouping is not None
    for number in (1, 2, 3):
        named = [str(option(sent_to(grid, site, number), "teacher")) for site in range(SITES)]
        groups = Counter((state.grouping.assignment[f"site-{i}"], named[i]) for i in range(SITES))
        assert len(groups) == 2 and len(set(named)) == (1 if number == 1 else 2)
        first = str(option(sent_to(grid, 0, 1), "pretrained"))
        assert named[0] == first or number > 1
        if number < 3:
            assert kept[str(number)] == sorted({named[0], first})
    assert kept["3"] == []
    # the pretrained network is not sent again beside a new teacher
    assert "pretrained-weights" not in sent_to(grid, 0, 2).content.array_records
    assert "teacher-weights" in sent_to(grid, 0, 2).content.array_records


def test_clusters_that_start_late_go_on_with_the_teacher_of_all(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    given = ADAPTED | {
        "teacher__update": "rounds",
        "teacher__every": 2,
        "clusters__bootstrap_rounds": 1,
        "eval__shard": "",
        "rounds": 2,
    }
    run_dir = run(grid, network_config(scenes, tmp_path, **given))
    assert state_of(run_dir, 1).clusters == {} and sorted(state_of(run_dir, 2).clusters) == [0, 1]
    assert list(state_of(run_dir, 2).teachers) == [EVERYONE]
    assert option(sent_to(grid, 0, 2), "teacher") == option(sent_to(grid, 0, 1), "teacher")
    shared = state_of(run_dir, 1).model
    layers = state_of(run_dir, 2).clusters[0].keys()
    for site in range(SITES):  # the clusters start from what everybody shared
        task = wire.decode_task(sent_to(grid, site, 2))
        assert all(np.array_equal(task.groups["weights"][key], shared[key]) for key in layers)


# --- broken sites ---------------------------------------------------------------------------------------


def arrays_of(reply: Message, group: str) -> Any:
    return reply.content.array_records[group]


def change(group: str, ending: str, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[Message], None]:
    def fault(reply: Message) -> None:
        record = arrays_of(reply, group)
        key = next(name for name in record if name.endswith(ending))
        record[key] = Array(how(record[key].numpy().copy()))

    return fault


def missing(reply: Message) -> None:
    record = arrays_of(reply, "statistics")
    del record[next(iter(record))]


def weightless(reply: Message) -> None:
    reply.content.config_records["facts"]["fact.images"] = 0


def silent_about_batches(reply: Message) -> None:
    del reply.content.config_records["facts"]["fact.batches"]


FAULTS: dict[str, tuple[Callable[[Message], None], str]] = {
    "nan": (change("weights", "weight", lambda a: a * np.nan), "holds NaN"),
    "shape": (change("weights", "weight", lambda a: a[None]), "has shape"),
    "type": (change("statistics", "running_mean", lambda a: a.astype(np.float64)), "expected float32"),
    "missing": (missing, "'statistics' has other arrays than expected"),
    "negative": (change("statistics", "running_var", lambda a: -a - 1), "holds a negative variance"),
    "weightless": (weightless, "its number of images is '0'"),
    "batches": (silent_about_batches, "its number of batches is 'None'"),
}


@pytest.mark.parametrize(
    "kinds", [("nan", "shape", "type"), ("missing", "negative", "batches")], ids="-".join
)
def test_broken_sites_cost_the_round_those_sites_and_nothing_else(
    tmp_path: Path, scenes: Path, kinds: tuple[str, ...]
) -> None:
    grid = local_grid(SITES)

    def first_round_only(fault: Callable[[Message], None]) -> Callable[[Message, Real], Answer]:
        def answer(message: Message, real: Real) -> Answer:
            reply = real(message)
            if message.metadata.message_type == wire.TRAIN and message.metadata.group_id == "1":
                fault(reply)
            return reply

        return answer

    for site, kind in enumerate(kinds):
        grid.faults[node_of(grid, site)] = first_round_only(FAULTS[kind][0])
    first, second = metrics(run(grid, network_config(scenes, tmp_path)))
    assert first["sites"] == ["site-3"] and second["sites"] == [f"site-{i}" for i in range(SITES)]
    for site, kind in enumerate(kinds):
        assert FAULTS[kind][1] in first["quarantined"][f"site-{site}"]
    assert not list((tmp_path / "run").glob("tmp*"))


def test_a_site_without_weight_cannot_empty_its_cluster(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)

    def answer(message: Message, real: Real) -> Answer:
        reply = real(message)
        if message.metadata.message_type == wire.TRAIN:
            weightless(reply)
        return reply

    for site in (1, 3):  # all of one cluster, as the test of late sites shows
        grid.faults[node_of(grid, site)] = answer
    given: dict[str, Any] = {"clusters__layers": "all", "clusters__exact": 2, "rounds": 1}
    line = metrics(run(grid, network_config(scenes, tmp_path, **given)))[0]
    assert line["sites"] == ["site-0", "site-2"]
    assert "its number of images is '0'" in line["quarantined"]["site-1"]


def test_what_is_no_style_is_left_out_and_the_site_stays(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)

    def answer(message: Message, real: Real) -> Answer:
        reply = real(message)
        if message.metadata.message_type == wire.STYLE:
            change("style", "style", lambda a: -a)(reply)
        return reply

    grid.faults[node_of(grid, 2)] = answer
    given = ADAPTED | {"rounds": 1, "eval__shard": ""}
    run_dir = run(grid, network_config(scenes, tmp_path, **given))
    assert metrics(run_dir)[0]["sites"] == [f"site-{i}" for i in range(SITES)]
    state = state_of(run_dir)
    assert state.grouping is not None and "site-2" not in state.grouping.assignment
    assert "amplitudes" in metrics(run_dir)[0]["quarantined"]["site-2"]


def test_a_late_site_joins_the_nearest_cluster(tmp_path: Path, scenes: Path, whole: dict[str, Path]) -> None:
    """Dark and bright scenes alternate over the sites; site 3 comes after the first round."""
    grid = local_grid(SITES)
    late = node_of(grid, 3)
    configuration = grid.node_configs.pop(late)

    def lets_it_in(message: Message, real: Real) -> Answer:
        if message.metadata.message_type == wire.TRAIN:
            grid.node_configs[late] = configuration
        return real(message)

    grid.faults[node_of(grid, 0)] = lets_it_in
    given: dict[str, Any] = {"clusters__layers": "bn+decoder", "clusters__exact": 2}
    run_dir = run(grid, network_config(scenes, tmp_path, SITES - 1, **given))
    assert [len(line["sites"]) for line in metrics(run_dir)] == [3, 4]
    before, after = state_of(run_dir, 1), state_of(run_dir, 2)
    assert before.grouping is not None and after.grouping is not None
    assert before.grouping.assignment == {"site-0": 0, "site-1": 1, "site-2": 0}
    assert after.grouping.assignment == before.grouping.assignment | {"site-3": 1}
    received = wire.decode_task(sent_to(grid, 3, 2)).groups
    assert same_arrays(received["weights"] | received["statistics"], before.cluster_model(1))


# --- what is whose --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", ["local-statistics", "local"])
def test_a_sites_own_batch_norms_come_back_to_it(tmp_path: Path, scenes: Path, batchnorm: str) -> None:
    grid = local_grid(SITES)
    run_dir = run(grid, network_config(scenes, tmp_path, network__batchnorm=batchnorm))
    config = load_checkpoint(run_dir).config
    model = build_network(SYNTHETIC.num_classes, config.network, 0)
    own = (statistics_keys if batchnorm == "local-statistics" else batchnorm_keys)(model)
    first = state_of(run_dir, 1)
    assert all(arrays.keys() == own for arrays in first.private.values()) and len(first.private) == SITES
    key = next(name for name in sorted(own) if name.endswith("running_mean"))
    assert not np.array_equal(first.private["site-0"][key], first.private["site-1"][key])
    mean = np.mean([first.private[f"site-{i}"][key] for i in range(SITES)], axis=0)
    np.testing.assert_allclose(first.model[key], mean, rtol=1e-5)
    for site in (0, 1):
        received = wire.decode_task(sent_to(grid, site, 2)).groups
        found = received["weights"] | received["statistics"]
        assert same_arrays({key: found[key] for key in own}, first.private[f"site-{site}"])
        assert all(np.array_equal(found[key], first.model[key]) for key in found.keys() - own)


@pytest.mark.parametrize("freeze", ["encoder", "batchnorm"])
def test_what_is_frozen_stays_bit_for_bit(tmp_path: Path, scenes: Path, freeze: str) -> None:
    run_dir = run(local_grid(SITES), network_config(scenes, tmp_path, network__freeze=freeze))
    config = load_checkpoint(run_dir).config
    model = build_network(SYNTHETIC.num_classes, config.network, config.seed)
    weights, statistics = network_to_arrays(model)
    start, after = weights | statistics, state_of(run_dir).model
    frozen = {key for key in start if key.startswith("backbone.")}
    if freeze == "batchnorm":
        frozen = set(batchnorm_keys(model) & start.keys())
    assert encoder_keys(model) <= frozen or freeze == "batchnorm"
    moved = {key for key in start if not np.array_equal(start[key], after[key])}
    assert not moved & frozen and "head.4.bias" in moved


def test_local_only_sites_never_learn_from_each_other(tmp_path: Path, scenes: Path) -> None:
    """A site that misses the first round starts from the common start in the second, not from a mean of others."""
    grid = local_grid(SITES)
    grid.faults[node_of(grid, 2)] = lambda message, real: (
        Error(2, "no") if message.metadata.group_id == "1" else real(message)
    )
    answers = heard(grid, 0, 1)
    given: dict[str, Any] = {"centroids__share": "none", "eval__shard": "eval.jsonl"}
    run_dir = run(grid, network_config(scenes, tmp_path, **given, eval__every=0))
    line = metrics(run_dir)[-1]
    assert line["miou"] is None and sorted(line["site_miou"]) == [f"site-{i}" for i in range(SITES)]
    state, config = state_of(run_dir), load_checkpoint(run_dir).config
    start = network_to_arrays(build_network(SYNTHETIC.num_classes, config.network, config.seed))
    assert same_arrays(state.model, start[0] | start[1])
    received = wire.decode_task(sent_to(grid, 2, 2)).groups
    assert same_arrays(received["weights"], start[0])
    last = [wire.decode_update(answers[site][-1].content, 1 << 31).groups["weights"] for site in (0, 1)]
    assert not np.array_equal(last[0]["head.4.weight"], last[1]["head.4.weight"])


def test_float16_halves_the_payload_and_spares_statistics(tmp_path: Path, scenes: Path) -> None:
    grid = local_grid(SITES)
    replies = heard(grid, 0)[0]
    given: dict[str, Any] = {"task": "adaptation", "rounds": 1, "wire__dtype": "float16"}
    run_dir = run(grid, network_config(scenes, tmp_path, **given))
    assert metrics(run_dir)[0]["sites"] == [f"site-{i}" for i in range(SITES)]
    sent, answered = sent_to(grid, 0, 1).content.array_records, replies[-1].content.array_records
    kinds = {name: {array.dtype for array in record.values()} for name, record in sent.items()}
    exact, half = {"float32"}, {"float16"}
    assert kinds == {
        "weights": half,
        "statistics": exact,
        "teacher-weights": half,
        "teacher-statistics": exact,
    }
    assert {array.dtype for array in answered["weights"].values()} == half
    assert {array.dtype for array in answered["statistics"].values()} == exact
    pretrained = state_of(run_dir).pretrained
    received = wire.decode_task(sent_to(grid, 0, 1)).groups["teacher-statistics"]
    assert same_arrays(received, {key: pretrained[key] for key in received})


def test_scores_of_sites_are_summed(tmp_path: Path, scenes: Path) -> None:
    given: dict[str, Any] = {"eval__where": "sites", "eval__shard": "{site}.jsonl", "rounds": 1}
    run_dir = run(local_grid(SITES), network_config(scenes, tmp_path, **given))
    line = metrics(run_dir)[0]
    confusion = np.asarray(line["confusion"])
    labelled = 0
    for i in range(SITES):
        pictures = ImageDataset(
            shard := read_shard(scenes / f"site-{i}.jsonl"), Transforms(), (0,), True, shard.classes
        )
        labelled += sum(int((pictures.label(index) != 255).sum()) for index in range(len(pictures)))
    assert confusion.sum() == labelled
    assert line["accuracy"] == pytest.approx(np.trace(confusion) / labelled)
    assert sorted(line["site_miou"]) == [f"site-{i}" for i in range(SITES)]


def test_pretraining_alone_is_round_0_and_a_start_for_others(
    tmp_path: Path, scenes: Path, whole: dict[str, Path]
) -> None:
    given: dict[str, Any] = {
        "task": "adaptation",
        "rounds": 0,
        "style__transfer": "fourier",
        "eval__shard": "eval.jsonl",
    }
    run_dir = run(local_grid(SITES), network_config(scenes, tmp_path / "source", **given))
    assert [line["round"] for line in metrics(run_dir)] == [0] and 0 < metrics(run_dir)[0]["miou"] < 1
    assert (run_dir / "report.html").is_file() and (run_dir / "pictures" / "round-0000.png").is_file()
    pretrained = load_checkpoint(run_dir)
    assert pretrained.round == 0
    assert same_arrays(
        pretrained.head, state_of(whole["adapted"]).pretrained
    )  # the same source, styles and seed
    start: dict[str, Any] = {
        "task": "adaptation",
        "rounds": 1,
        "source__checkpoint": str(run_dir),
        "source__shard": "",
    }
    grid = local_grid(SITES)
    run(grid, network_config(scenes, tmp_path / "run", **start))
    assert same_arrays(wire.decode_task(sent_to(grid, 0, 1)).groups["weights"], split(pretrained.head)[0])


def split(flat: Arrays) -> tuple[Arrays, Arrays]:
    return split_flat(build_network(SYNTHETIC.num_classes, network_config(Path(), Path()).network, 0), flat)
