"""Are shards scored at the right size, once, and without opening labels that nobody asked for?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from common.data.classes import ClassTable
from common.data.manifest import Entry, Shard
from common.errors import UserError
from common.evaluation.clusters import Evaluation, evaluate_segmenter
from common.evaluation.metrics import sum_confusions
from common.features.source import Features
from common.models.segmenter import Geometry, Segmenter
from common.settings.unsupervised import Model

TABLE = ClassTable("toy", ("a", "b", "c"), ((1, 2, 3), (40, 50, 60), (200, 100, 0)))
MODEL = Model(backbone="vit_tiny_patch16_224", height=32, width=48)
CELL_CLASSES = np.array([[0, 1, 2], [2, 2, 1]])


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes.reshape(-1)]


def toy_features(*grids: np.ndarray) -> Features:
    return Features.from_arrays(np.stack([one_hot(grid) for grid in grids]), grids[0].shape)


def toy_segmenter(height: int = 32, width: int = 48) -> Segmenter:
    return Segmenter(nn.Identity(), torch.eye(3), Geometry(height, width))


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Shard]:
    def make(
        *labels: np.ndarray | None, size: tuple[int, int] = (32, 48), classes: ClassTable | None = TABLE
    ) -> Shard:
        entries = []
        for index, label in enumerate(labels):
            height, width = size if label is None else label.shape
            picture = np.full((height, width, 3), 10 * index, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / f"{index}.png")
            if label is not None:
                Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"{index}-label.png")
            entries.append(Entry(f"{index}.png", None if label is None else f"{index}-label.png"))
        return Shard("toy", tmp_path / "toy.jsonl", tmp_path, tuple(entries), classes)

    return make


def enlarged(classes: np.ndarray, factor: int) -> np.ndarray:
    return classes.repeat(factor, 0).repeat(factor, 1)


def test_confusion_is_counted_at_label_size_by_hand(make_shard: Callable[..., Shard]) -> None:
    """Cells of one-hot codes: cell borders fall in the middle between centres, as in an enlarged map."""
    label = enlarged(CELL_CLASSES, 16).astype(np.uint8)
    label[:4, :4] = 255
    label[-2:, -2:] = 0
    shard = make_shard(label)
    found = evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES), shard, MODEL)
    assert found.confusion is not None
    assert found.confusion.total == label.size - 16
    assert found.confusion.matrix[1, 0] >= 4
    assert (np.diag(found.confusion.matrix).sum() + 4) / found.confusion.total > 0.9
    twice = evaluate_segmenter(
        toy_segmenter(), toy_features(CELL_CLASSES), make_shard(enlarged(CELL_CLASSES, 40)), MODEL
    )
    assert twice.confusion is not None
    assert twice.confusion.total == 80 * 120


def test_slow_oracle(make_shard: Callable[..., Shard]) -> None:
    rng = np.random.default_rng(1)
    labels = [rng.choice([0, 1, 2, 255], size=(20 + i, 31)) for i in range(5)]
    tokens = rng.normal(size=(5, 6, 3)).astype(np.float32)
    features, segmenter = Features.from_arrays(tokens, (2, 3)), toy_segmenter()
    seen: list[tuple[int, int]] = []
    found = evaluate_segmenter(
        segmenter,
        features,
        make_shard(*labels),
        MODEL,
        batch=2,
        keep=[1, 4],
        progress=lambda done, total: seen.append((done, total)),
    )
    counts = np.zeros((3, 3), dtype=np.int64)
    cosines = []
    for index, label in enumerate(labels):
        feats = features.batch([index])
        predicted = segmenter.logits(feats, label.shape).argmax(1)[0].numpy()
        for row in range(label.shape[0]):
            for column in range(label.shape[1]):
                if label[row, column] != 255:
                    counts[predicted[row, column], label[row, column]] += 1
        cosines += [max(token / np.linalg.norm(token)) for token in tokens[index]]
        if index in (1, 4):
            assert np.array_equal(found.predictions[index], predicted)
    assert found.confusion is not None
    assert np.array_equal(found.confusion.matrix, counts)
    assert found.confusion.matrix.dtype == np.int64
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.num_images == found.num_labelled == 5
    assert set(found.predictions) == {1, 4}
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_sites_add_up_to_the_whole(make_shard: Callable[..., Shard], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = [rng.integers(0, 3, size=(16, 24)) for _ in range(4)]
    features = Features.from_arrays(rng.normal(size=(4, 6, 3)).astype(np.float32), (2, 3))
    whole = make_shard(*labels)
    halves = []
    for part in ([0, 1], [2, 3]):
        shard = Shard("half", tmp_path / "x.jsonl", tmp_path, tuple(whole.entries[i] for i in part), TABLE)
        tokens = features.batch(part).flatten(2).transpose(1, 2).numpy()
        halves.append(evaluate_segmenter(toy_segmenter(), Features.from_arrays(tokens, (2, 3)), shard, MODEL))
    expected = evaluate_segmenter(toy_segmenter(), features, whole, MODEL)
    counts = {str(i): half.confusion.matrix for i, half in enumerate(halves) if half.confusion is not None}
    assert len(counts) == 2 and sum_confusions(counts) == expected.confusion
    assert np.array_equal(halves[0].patches + halves[1].patches, expected.patches)
    assert halves[0].cosine_sum + halves[1].cosine_sum == pytest.approx(expected.cosine_sum)


def test_without_labels_the_label_free_figures_stand_alone(make_shard: Callable[..., Shard]) -> None:
    other = np.zeros((2, 3), dtype=int)
    found = evaluate_segmenter(
        toy_segmenter(), toy_features(CELL_CLASSES, other), make_shard(None, None), MODEL, keep=[0]
    )
    assert found.confusion is None
    assert found.cluster_share == pytest.approx([7 / 12, 2 / 12, 3 / 12])
    share = np.array([7, 2, 3]) / 12
    assert found.entropy == pytest.approx(-(share * np.log(share)).sum() / math.log(3))
    assert found.mean_cosine == pytest.approx(1.0)
    assert found.predictions[0].shape == (32, 48)


def test_entropy_at_its_ends() -> None:
    assert Evaluation(np.array([4, 4, 4, 4]), 0.0, 1).entropy == pytest.approx(1.0)
    assert Evaluation(np.array([9, 0, 0, 0]), 0.0, 1).entropy == 0.0


def test_labels_are_opened_where_a_table_names_their_classes(
    make_shard: Callable[..., Shard], tmp_path: Path
) -> None:
    shard = make_shard(enlarged(CELL_CLASSES, 16))
    (tmp_path / "0-label.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"0-label\.png"):
        evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES), shard, MODEL)


def test_partly_labelled_shard_scores_what_has_a_label(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard(enlarged(CELL_CLASSES, 16), None)
    found = evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES, CELL_CLASSES), shard, MODEL)
    assert (found.num_images, found.num_labelled) == (2, 1)


def test_labels_without_a_class_table_are_refused(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard(enlarged(CELL_CLASSES, 16), classes=None)
    with pytest.raises(UserError, match="--classes"):
        evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES), shard, MODEL)


def test_centre_crop_scores_only_what_the_backbone_saw(make_shard: Callable[..., Shard]) -> None:
    """A 32 x 64 picture cropped to a square: the outer columns hold wrong labels that must not count."""
    square = np.array([[0, 1], [2, 0]])
    label = np.full((32, 64), 1)
    label[:, 16:48] = enlarged(square, 16)
    model = Model(backbone="vit_tiny_patch16_224", height=32, width=32, crop="center")
    shard, features = make_shard(label), Features.from_arrays(one_hot(square)[None], (2, 2))
    found = evaluate_segmenter(toy_segmenter(32, 32), features, shard, model, keep=[0])
    assert found.confusion is not None
    assert found.confusion.total == 32 * 32
    assert np.trace(found.confusion.matrix) / found.confusion.total > 0.9
    assert found.predictions[0].shape == (32, 32)
    at_input = model.model_copy(update={"height": 64, "width": 64})
    found = evaluate_segmenter(toy_segmenter(64, 64), features, shard, at_input, score_at="input")
    assert found.confusion is not None
    assert found.confusion.total == 64 * 64


def test_refinement_sees_cosines_and_picture_at_label_size(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard(enlarged(CELL_CLASSES, 20))
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def refine(cosines: Tensor, image: np.ndarray) -> np.ndarray:
        seen.append((tuple(cosines.shape), image.shape))
        return np.full(image.shape[:2], 2, dtype=np.uint8)

    found = evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES), shard, MODEL, refine=refine)
    assert seen == [((3, 40, 60), (40, 60, 3))]
    assert found.confusion is not None
    assert found.confusion.matrix[:2].sum() == 0


def test_refinement_of_the_reference_protocol_sees_the_input_of_the_backbone(
    make_shard: Callable[..., Shard], tmp_path: Path
) -> None:
    shard = make_shard(enlarged(CELL_CLASSES, 20))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    model = MODEL.model_copy(update={"height": 20, "width": 20, "crop": "center", "resize": "nearest"})
    seen: list[np.ndarray] = []

    def refine(cosines: Tensor, image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return np.zeros(image.shape[:2], dtype=np.uint8)

    features = Features.from_arrays(one_hot(CELL_CLASSES[:, :2])[None], (2, 2))
    evaluate_segmenter(toy_segmenter(20, 20), features, shard, model, score_at="input", refine=refine)
    # every other pixel of the central square, none of them a mixture
    assert np.array_equal(seen[0], pixels[1::2, 11:50:2])


def test_mirrored_features_are_averaged_in(make_shard: Callable[..., Shard]) -> None:
    shard = make_shard(None)
    uniform = np.zeros((2, 3), dtype=int)
    mirrored = toy_features(np.ones((2, 3), dtype=int))
    found = evaluate_segmenter(
        toy_segmenter(),
        toy_features(uniform),
        shard,
        MODEL,
        mirrored=lambda indices: 3 * mirrored.batch(indices),
    )
    assert found.cluster_share == pytest.approx([0, 1, 0])
    assert found.mean_cosine == pytest.approx(3 / math.sqrt(10), abs=1e-6)


def test_features_of_another_shard_are_refused(make_shard: Callable[..., Shard]) -> None:
    with pytest.raises(ValueError, match="2 features for the 1 images"):
        evaluate_segmenter(toy_segmenter(), toy_features(CELL_CLASSES, CELL_CLASSES), make_shard(None), MODEL)
