"""Does the feature cache give what the backbone gives, and survive what happens to disks and processes?"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.augment import Augmentation
from common.data.images import read_image
from common.data.manifest import Entry, Shard, read_shard, write_manifest
from common.errors import UserError
from common.features import store
from common.features.cache import CPU_BATCH, open_features
from common.features.source import Features, nearest_neighbours
from common.features.store import features_key
from common.models import backbone as backbones
from common.models.backbone import prepare_image, weights_key
from common.seeds import numpy_generator
from common.settings.load import load_config
from common.settings.unsupervised import Cache, Model
from tests.support.uncached import UncachedFeatures

ROOT = Path(__file__).resolve().parents[3]
MODEL = Model(backbone="test_vit", weights="random", depth=1, height=32, width=48, clusters=4, dim=8)
FLOAT32 = Cache(dtype="float32")


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Eleven small pictures: two batches, the second one not full."""
    return make_shard(tmp_path / "site", 11)


def make_shard(folder: Path, count: int) -> Shard:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    entries = []
    for index in range(count):
        coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 40)).save(folder / f"{index}.png")
        entries.append(Entry(f"{index}.png"))
    write_manifest(folder / "site-0.jsonl", entries)
    return read_shard(folder / "site-0.jsonl")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one each time that a backbone is loaded."""
    calls: list[str] = []
    real = backbones.load_backbone

    def counted(model: Model, *rest: Any) -> backbones.Backbone:
        calls.append(model.backbone)
        return real(model, *rest)

    monkeypatch.setattr(backbones, "load_backbone", counted)
    return calls


def cached(shard: Shard, folder: Path, model: Model = MODEL, cache: Cache = FLOAT32, **more: Any) -> Features:
    return open_features(shard, model, cache, folder, device="cpu", **more)


def folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


# --- the content ----------------------------------------------------------------------------------------


def test_cache_holds_what_the_backbone_gives(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    features = cached(shard, tmp_path / "c", progress=lambda done, total: seen.append((done, total)))
    direct = UncachedFeatures(shard, MODEL, "cpu", seed=0)
    assert seen == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11), (11, 11)]
    assert (len(features), features.grid, features.channels) == (11, (2, 3), 64)
    assert features.tokens.dtype == np.float32 and features.tokens.shape == (11, 6, 64)
    assert (features.grid, features.channels, features.weights_hash, len(features)) == (
        direct.grid,
        direct.channels,
        direct.weights_hash,
        len(direct),
    )
    torch.testing.assert_close(features.batch([10, 0, 3]), direct.batch([10, 0, 3]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(features.pooled, direct.pooled, atol=1e-5)
    assert np.array_equal(features.neighbours(3), direct.neighbours(3))


def test_batch_is_channels_first_float32_in_row_major_order(shard: Shard, tmp_path: Path) -> None:
    features = cached(shard, tmp_path / "c", cache=Cache(dtype="float16"))
    for indices in ([4, 4, 1], np.array([4, 4, 1]), torch.tensor([4, 4, 1])):
        batch = features.batch(indices)
        assert batch.shape == (3, 64, 2, 3) and batch.dtype == torch.float32
        for row, image in enumerate((4, 4, 1)):
            expected = features.tokens[image].astype(np.float32)[1 * 3 + 2]  # place (1, 2)
            assert np.array_equal(batch[row, :, 1, 2].numpy(), expected)


def test_half_precision_is_rounding_and_nothing_else(shard: Shard, tmp_path: Path) -> None:
    full = cached(shard, tmp_path / "c").tokens
    half = cached(shard, tmp_path / "c", cache=Cache(dtype="float16")).tokens
    assert half.dtype == np.float16 and np.array_equal(half, full.astype(np.float16))


def test_header_says_what_is_in_it(shard: Shard, tmp_path: Path) -> None:
    features = cached(shard, tmp_path / "c")
    (folder,) = folders(tmp_path / "c")
    header = json.loads((folder / "header.json").read_text())
    assert header["weights_hash"] == features.weights_hash and header["weights_key"] == "random:0"
    assert (header["grid"], header["channels"], header["images"]) == ([2, 3], 64, 11)
    assert header["token_bytes"] == (folder / "tokens.bin").stat().st_size == 11 * 6 * 64 * 4
    assert header["dtype"] == "float32" and header["settings"]["backbone"] == "test_vit"


@pytest.mark.parametrize("objective", ["correspondence"])
def test_cached_and_uncached_training_give_the_same_loss(
    shard: Shard, tmp_path: Path, objective: str
) -> None:
    from client.work import trainer
    from common.models.head import build_head, init_centroids, state_to_numpy

    config = load_config(
        {f"model.{key}": value for key, value in MODEL.model_dump(by_alias=True).items()},
        {"local.steps": 3, "local.batch": 4, "local.neighbours": 2, "loss.objective": objective},
    )
    results = []
    for features in (cached(shard, tmp_path / "c"), UncachedFeatures(shard, MODEL, "cpu", seed=0)):
        head = state_to_numpy(build_head(features.channels, config.model, seed=0))
        centroids = np.asarray(init_centroids(4, 8, seed=0), dtype=np.float32)
        results.append(trainer.train_local(features, head, centroids, config, 1, "site-0"))
    first, second = results
    assert first.metrics["loss"] == pytest.approx(second.metrics["loss"], abs=1e-5)
    for name, array in first.head.items():
        np.testing.assert_allclose(array, second.head[name], atol=1e-4)


# --- the key --------------------------------------------------------------------------------------------


def test_second_time_is_a_hit(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    first = cached(shard, tmp_path / "c")
    second = cached(shard, tmp_path / "c", progress=lambda *_: pytest.fail("a hit has nothing to report"))
    assert builds == ["test_vit"]
    assert np.array_equal(first.tokens, second.tokens) and first.weights_hash == second.weights_hash


def test_head_settings_do_not_matter_and_backbone_settings_do(
    shard: Shard, tmp_path: Path, builds: list[str]
) -> None:
    cached(shard, tmp_path / "c")
    cached(shard, tmp_path / "c", MODEL.model_copy(update={"clusters": 9, "dim": 5, "stages": "3"}))
    assert len(builds) == 1
    cached(shard, tmp_path / "c", MODEL.model_copy(update={"depth": 2}))
    cached(shard, tmp_path / "c", seed=1)
    cached(shard, tmp_path / "c", cache=Cache(dtype="float16"))
    assert len(builds) == 4 and len(folders(tmp_path / "c")) == 4
    cached(shard, tmp_path / "c")  # all of these lie side by side
    assert len(builds) == 4


def test_keys_of_old_settings_are_as_ever(shard: Shard) -> None:
    """Whoever has caches keeps them: these two keys were taken before there were blocks, windows and scales."""
    cnn = Model(weights="random")
    vit = Model(backbone="vit_small_patch16_224", weights="random", depth=11, height=224, width=320)
    for model, key in ((cnn, "77b99f59174fd224"), (vit, "c90327a86f57d35a")):
        assert features_key(shard, model, Cache(), 0, torch.device("cpu")).model == key


def test_only_what_is_really_computed_in_float16_has_a_cache_of_its_own(shard: Shard) -> None:
    def key(mixed: bool, device: str) -> store.Key:
        return features_key(shard, MODEL, Cache(mixed_precision=mixed), 0, torch.device(device))

    assert key(True, "cpu") == key(False, "cpu") == key(False, "cuda")
    assert key(True, "cuda").folder != key(False, "cuda").folder
    assert key(True, "cuda").shard == key(False, "cuda").shard


def test_float16_that_overflows_is_named_as_the_cause(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(self: backbones.Backbone, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 6, 64), torch.inf)

    monkeypatch.setattr(backbones.Backbone, "forward", overflowing)
    monkeypatch.setattr("common.features.store.in_float16", lambda cache, device: cache.mixed_precision)
    with pytest.raises(UserError, match=r"computed in float16; set cache\.mixed-precision to false"):
        cached(shard, tmp_path / "c", cache=Cache(mixed_precision=True))
    assert folders(tmp_path / "c") == []


def test_least_recently_used_variants_go(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    for seed in range(store.KEEP):
        cached(shard, tmp_path / "c", seed=seed)
    cached(shard, tmp_path / "c", seed=0)  # used again, so seed 1 is now the oldest
    cached(shard, tmp_path / "c", seed=99)
    assert len(folders(tmp_path / "c")) == store.KEEP
    before = len(builds)
    cached(shard, tmp_path / "c", seed=0)
    assert len(builds) == before
    cached(shard, tmp_path / "c", seed=1)
    assert len(builds) == before + 1


@pytest.mark.parametrize("change", ["touch", "content", "removed", "order"])
def test_changed_images_make_a_new_cache_and_the_old_one_goes(
    shard: Shard, tmp_path: Path, builds: list[str], change: str
) -> None:
    cached(shard, tmp_path / "c")
    (old,) = folders(tmp_path / "c")
    picture = shard.image_path(2)
    entries = list(shard.entries)
    if change == "touch":
        os.utime(picture, ns=(1, 1))
    elif change == "content":
        Image.new("RGB", (60, 40), (255, 0, 0)).save(picture)
    elif change == "removed":
        del entries[2]
    else:
        entries[0], entries[1] = entries[1], entries[0]
    changed = Shard(shard.name, shard.path, shard.root, tuple(entries))
    features = cached(changed, tmp_path / "c")
    assert len(builds) == 2 and len(features) == len(entries)
    assert len(folders(tmp_path / "c")) == 1 and not old.exists()


def test_shards_of_one_folder_do_not_push_each_other_out(tmp_path: Path, builds: list[str]) -> None:
    shards = [make_shard(tmp_path / name, 3) for name in ("a", "b")]  # the same name, other folders
    pooled = Shard("pooled", shards[0].path, shards[0].root, shards[0].entries)
    for shard in (*shards, pooled, *shards, pooled):
        cached(shard, tmp_path / "c")
    assert len(builds) == 3


def test_data_root_may_move(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    cached(shard, tmp_path / "c")
    moved = shutil.copytree(shard.root, tmp_path / "elsewhere", copy_function=shutil.copy2)
    cached(Shard(shard.name, shard.path, Path(moved), shard.entries), tmp_path / "c")
    assert len(builds) == 1


# --- faults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["short", "long", "header", "no-pooled", "no-header"])
def test_damaged_cache_is_made_anew(
    shard: Shard, tmp_path: Path, builds: list[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    good = np.array(cached(shard, tmp_path / "c").tokens)
    (folder,) = folders(tmp_path / "c")
    tokens = (folder / "tokens.bin").read_bytes()
    if damage == "short":
        (folder / "tokens.bin").write_bytes(tokens[:-4])
    elif damage == "long":
        (folder / "tokens.bin").write_bytes(tokens + b"\0")
    elif damage == "header":
        (folder / "header.json").write_text('{"format": 1, "images"')
    else:
        (folder / ("pooled.bin" if damage == "no-pooled" else "header.json")).unlink()
    with caplog.at_level(logging.WARNING):
        again = cached(shard, tmp_path / "c")
    assert len(builds) == 2 and "made anew" in caplog.text
    np.testing.assert_allclose(again.tokens, good, atol=1e-6)


def test_colours_are_cell_means_of_the_prepared_image(shard: Shard, tmp_path: Path) -> None:
    features = cached(shard, tmp_path / "c")
    direct = UncachedFeatures(shard, MODEL, "cpu", seed=0)
    height, width = features.grid
    for index in (0, 4):
        picture = prepare_image(read_image(shard.image_path(index)), MODEL)
        tall, wide = picture.shape[1] // height, picture.shape[2] // width
        expected = [
            picture[:, r * tall : (r + 1) * tall, c * wide : (c + 1) * wide].mean(dim=(1, 2))
            for r in range(height)
            for c in range(width)
        ]
        for source, tolerance in ((features, 1e-3), (direct, 1e-5)):
            found = source.colours([index])
            torch.testing.assert_close(found[0], torch.stack(expected), atol=tolerance, rtol=0)
    with pytest.raises(ValueError, match="without colours"):
        Features.from_arrays(np.zeros((1, 6, 2), np.float32), (2, 3)).colours([0])


def test_views_are_features_of_augmented_pictures(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    cache = Cache(dtype="float32", views=2)
    features = cached(shard, tmp_path / "c", cache=cache, seed=5)
    plain = UncachedFeatures(shard, MODEL.model_copy(), "cpu", seed=5)
    assert len(features) == 11 and features.pooled.shape[0] == 11
    torch.testing.assert_close(features.batch([3]), plain.batch([3]))
    seen = set()
    for draw in range(8):
        maps, places = features.augmented([3, 7], torch.Generator().manual_seed(draw))
        which = torch.randint(2, (2,), generator=torch.Generator().manual_seed(draw)).tolist()
        seen.add(which[0])
        for row, (image, view) in enumerate(zip((3, 7), which, strict=True)):
            augmentation = Augmentation.draw(5, image, view)
            picture = augmentation.apply(prepare_image(read_image(shard.image_path(image)), MODEL))
            expected = backbones.load_backbone(MODEL, 5, torch.device("cpu"))(picture[None])[0]
            torch.testing.assert_close(maps[row].flatten(1).T, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(places[row], augmentation.places(features.grid, tiled=True))
    assert seen == {0, 1}
    builds.clear()
    cached(shard, tmp_path / "c", cache=cache, seed=5)
    assert builds == []
    cached(shard, tmp_path / "c", cache=Cache(dtype="float32", views=1), seed=5)
    assert len(builds) == 1
    with pytest.raises(ValueError, match=r"cache\.views"):
        cached(shard, tmp_path / "c", seed=5).augmented([0], torch.Generator())


def test_full_disk_is_foreseen(shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    needed = 11 * 6 * 64 * 4 + 11 * 64 * 4 + 11 * 6 * 3 * 2
    with pytest.raises(UserError, match=rf"need {needed} bytes .*{tmp_path / 'c'}.*1000 bytes are free"):
        cached(shard, tmp_path / "c")
    assert folders(tmp_path / "c") == []


@pytest.mark.parametrize("when", ["append", "close"])
def test_disk_that_fills_up_meanwhile_leaves_nothing(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, builds: list[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if when == "append":
            real, calls = store.Writer.append, []

            def second_fails(self: store.Writer, *arrays: Any) -> None:
                calls.append(1)
                (real if len(calls) < 2 else full)(self, *arrays)

            patch.setattr(store.Writer, "append", second_fails)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"need \d+ bytes .* bytes are free; make room"):
            cached(shard, tmp_path / "c")
    assert folders(tmp_path / "c") == []
    cached(shard, tmp_path / "c")  # with room again, nothing stands in the way
    assert len(builds) == 2 and len(folders(tmp_path / "c")) == 1


def test_failure_while_building_leaves_nothing(shard: Shard, tmp_path: Path) -> None:
    picture = shard.image_path(9)
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"9\.png"):
        cached(shard, tmp_path / "c")
    assert folders(tmp_path / "c") == []


def test_missing_image_and_empty_shard(shard: Shard, tmp_path: Path) -> None:
    shard.image_path(5).unlink()
    with pytest.raises(UserError, match=r"5\.png of shard site-0 cannot be found"):
        cached(shard, tmp_path / "c")
    with pytest.raises(UserError, match="holds no images"):
        cached(Shard("empty", shard.path, shard.root, ()), tmp_path / "c")


def test_cache_folder_that_cannot_be_written(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        cached(shard, tmp_path / "file" / "c")


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (float("nan"), "float32", r"not finite for .*10\.png"),
        (1e5, "float16", "set cache.dtype to 'float32'"),
    ],
)
def test_features_that_cannot_be_stored(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dtype: Any, words: str
) -> None:
    real = backbones.Backbone.forward

    def spoiled(self: backbones.Backbone, images: torch.Tensor) -> torch.Tensor:
        tokens = real(self, images).clone()
        if len(images) < CPU_BATCH:  # the last batch, which is shorter
            tokens[0, 3, 5] = value
        return tokens

    monkeypatch.setattr(backbones.Backbone, "forward", spoiled)
    with pytest.raises(UserError, match=words):
        cached(shard, tmp_path / "c", cache=Cache(dtype=dtype))
    assert folders(tmp_path / "c") == []


# --- processes ------------------------------------------------------------------------------------------

PROGRAM = """
import logging, os, sys, time
from pathlib import Path
from common.settings.unsupervised import Cache, Model
from common.data.manifest import read_shard
from common.features.cache import open_features
from common.models import backbone as backbones
manifest, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
logging.basicConfig(level=logging.INFO)
real = backbones.load_backbone
def load(*arguments):
    with (folder.parent / "builds").open("a") as file:
        file.write("x")
    return real(*arguments)
backbones.load_backbone = load
def progress(done, total):
    print("started", flush=True)
    time.sleep(pause)
model = Model(backbone="test_vit", weights="random", depth=1, height=32, width=48, clusters=4, dim=8)
features = open_features(read_shard(manifest), model, Cache(dtype="float32"), folder, "cpu", 0, progress)
total = float(features.batch(range(len(features))).double().sum())
print("sum", total, "timm" in sys.modules, "torchvision" in sys.modules)
"""


def start(shard: Shard, folder: Path, pause: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(shard.path), str(folder), str(pause)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_second_process_waits_and_then_hits_without_timm(shard: Shard, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = start(shard, folder, pause=3.0)
    assert first.stdout is not None and first.stdout.readline() == "started\n"
    second = start(shard, folder, pause=0.0)
    out_second, log_second = second.communicate(timeout=60)
    out_first, log_first = first.communicate(timeout=60)
    assert first.returncode == second.returncode == 0, log_first + log_second
    assert (tmp_path / "builds").read_text() == "x"
    assert "waiting for it" in log_second
    words_first, words_second = out_first.splitlines()[-1].split(), out_second.split()
    assert words_first[1] == words_second[1]
    assert words_first[2] == "True" and words_second[2:] == ["False", "False"]


def test_killed_half_way(shard: Shard, tmp_path: Path, builds: list[str]) -> None:
    folder = tmp_path / "c"
    process = start(shard, folder, pause=60.0)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    (half,) = folders(folder)
    assert half.name.startswith(".") and half.name.endswith(".partial")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    features = cached(shard, folder)
    assert len(builds) == 1 and len(features) == 11
    (whole,) = folders(folder)
    assert whole != half and (whole / "header.json").is_file()


def test_open_features_survive_the_removal_of_their_files(shard: Shard, tmp_path: Path) -> None:
    features = cached(shard, tmp_path / "c")
    before = features.batch([0, 10])
    os.utime(shard.image_path(0), ns=(1, 1))
    cached(shard, tmp_path / "c")
    assert torch.equal(features.batch([0, 10]), before)


def test_hit_is_fast(shard: Shard, tmp_path: Path) -> None:
    cached(shard, tmp_path / "c")
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        cached(shard, tmp_path / "c")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.02  # the quickest, as the machine may be busy


# --- neighbours -----------------------------------------------------------------------------------------


def slow_neighbours(pooled: np.ndarray, k: int) -> list[list[int]]:
    units = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    answer = []
    for i, unit in enumerate(units):
        ranked = sorted((-float(unit @ other), j) for j, other in enumerate(units) if j != i)
        answer.append([j for _, j in ranked[:k]])
    return answer


def test_neighbours_agree_with_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = np.random.default_rng(3).normal(size=(23, 5)).astype(np.float32)
    expected = slow_neighbours(pooled.astype(np.float64), 4)
    assert nearest_neighbours(pooled, 4).tolist() == expected
    monkeypatch.setattr(
        "common.features.source._BLOCK_ELEMENTS", 3 * 23
    )  # blocks of three rows, the last of two
    assert nearest_neighbours(pooled, 4).tolist() == expected


def test_neighbours_do_not_depend_on_length_and_every_k_is_a_prefix() -> None:
    random = np.random.default_rng(4)
    pooled = random.normal(size=(12, 6)).astype(np.float32)
    scaled = pooled * random.uniform(0.1, 9, size=(12, 1)).astype(np.float32)
    assert np.array_equal(nearest_neighbours(pooled, 5), nearest_neighbours(scaled, 5))
    assert np.array_equal(nearest_neighbours(pooled, 11)[:, :5], nearest_neighbours(pooled, 5))


def test_ties_go_to_the_lower_index_and_never_to_oneself() -> None:
    pooled = np.tile(np.random.default_rng(5).normal(size=(1, 7)).astype(np.float32), (6, 1))
    found = nearest_neighbours(pooled, 2)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_neighbours_under_dropout_are_those_of_pooled_dropped_patches() -> None:
    tokens = np.random.default_rng(8).normal(size=(9, 4, 50)).astype(np.float32)
    features = Features.from_arrays(tokens, (2, 2))
    kept = numpy_generator(5).random((9, 50), dtype=np.float32) >= 0.3
    assert 0.6 < kept.mean() < 0.8 and len({row.tobytes() for row in kept}) == 9
    dropped = np.where(kept[:, None], tokens / 0.7, 0).mean(axis=1)  # as Dropout2d, then pooled
    found = features.neighbours(3, 0.3, 5)
    assert found.tolist() == slow_neighbours(dropped.astype(np.float64), 3)
    assert not np.array_equal(found, features.neighbours(3))
    assert not np.array_equal(found, features.neighbours(3, 0.3, 6))
    assert np.array_equal(
        features.neighbours(3), nearest_neighbours(features.pooled, 3)
    )  # nothing stays dropped


@pytest.mark.parametrize(
    ("count", "words"), [(3, "at most 2 or add images"), (1, "holds 1 image, .* add images")]
)
def test_too_few_images_for_the_neighbours(count: int, words: str) -> None:
    features = Features.from_arrays(np.ones((count, 4, 2), dtype=np.float32), (2, 2))
    with pytest.raises(UserError, match=words):
        features.neighbours(3)


# --- real files -----------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_images_with_the_real_backbone(shared_data: Path, shared_weights: Path, tmp_path: Path) -> None:
    root = shared_data / "crackforest"
    names = sorted(path.name for path in (root / "unlabelled" / "images").glob("*.jpg"))[:4]
    write_manifest(tmp_path / "s.jsonl", [Entry(f"unlabelled/images/{name}") for name in names])
    shard = read_shard(tmp_path / "s.jsonl", data_root=root)
    model = Model(weights=str(shared_weights / "mobilenet_v2_imagenet.safetensors"), height=65, width=97)
    features = cached(shard, tmp_path / "c", model, Cache())
    direct = UncachedFeatures(shard, model, "cpu", seed=0)
    assert weights_key(model, 0).startswith("file:")
    torch.testing.assert_close(features.batch([0, 3]), direct.batch([0, 3]), rtol=1e-3, atol=1e-3)
