"""Are confusions counted, matched and scored as the definitions say?"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.data.classes import IGNORE
from common.errors import UserError
from common.evaluation.metrics import (
    Confusion,
    match,
    published_scores,
    rates,
    scores,
    sum_confusions,
)


def slow_confusion(prediction: np.ndarray, label: np.ndarray, clusters: int, classes: int) -> list[list[int]]:
    table = [[0] * classes for _ in range(clusters)]
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != 255:
            table[p][t] += 1
    return table


def slow_iou(
    prediction: np.ndarray, label: np.ndarray, mapping: dict[int, int], classes: int
) -> list[float | None]:
    """Set arithmetic on single pixels, from the definition of intersection over union."""
    pixels = [
        (mapping.get(p), t)
        for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True)
        if t != 255
    ]
    result: list[float | None] = []
    for c in range(classes):
        truth = {i for i, (_, t) in enumerate(pixels) if t == c}
        guess = {i for i, (p, _) in enumerate(pixels) if p == c}
        result.append(len(truth & guess) / len(truth | guess) if truth else None)
    return result


def slow_rates(
    prediction: np.ndarray, label: np.ndarray, mapping: dict[int, int], classes: int
) -> tuple[list[float | None], list[float | None], float, float]:
    """Accuracy and precision by class, mean accuracy and IoU by frequency, pixel by pixel."""
    pixels = [
        (mapping.get(p), t)
        for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True)
        if t != 255
    ]
    accuracy: list[float | None] = []
    precision: list[float | None] = []
    for c in range(classes):
        of_class = [p == c for p, t in pixels if t == c]
        guessed = [t == c for p, t in pixels if p == c]
        accuracy.append(sum(of_class) / len(of_class) if of_class else None)
        precision.append(sum(guessed) / len(guessed) if of_class and guessed else None)
    present = [value for value in accuracy if value is not None]
    iou = slow_iou(prediction, label, mapping, classes)
    weighed = sum(value for _, t in pixels if (value := iou[t]) is not None) / len(pixels)
    return accuracy, precision, sum(present) / len(present), weighed


def draw(seed: int, clusters: int, classes: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size)
    prediction = np.where(rng.random(size) < 0.5, (label * 7 + 3) % clusters, rng.integers(0, clusters, size))
    label[rng.random(size) < 0.1] = IGNORE
    return prediction.reshape(20, -1).astype(np.uint8), label.reshape(20, -1).astype(np.uint8)


def count(prediction: np.ndarray, label: np.ndarray, clusters: int, classes: int) -> Confusion:
    confusion = Confusion(clusters, classes)
    confusion.update(prediction, label)
    return confusion


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (7, 3), (2, 5), (27, 27)])
def test_counts_equal_a_pixel_loop(clusters: int, classes: int) -> None:
    prediction, label = draw(0, clusters, classes)
    confusion = count(prediction, label, clusters, classes)
    assert confusion.matrix.dtype == np.int64
    assert confusion.to_list() == slow_confusion(prediction, label, clusters, classes)
    assert confusion.total == int((label != IGNORE).sum())


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (7, 3), (2, 5), (27, 27)])
def test_rates_equal_a_pixel_loop(clusters: int, classes: int) -> None:
    prediction, label = draw(3, clusters, classes)
    label[label == classes - 1] = IGNORE  # a class that is absent, and predicted all the same
    confusion = count(prediction, label, clusters, classes)
    mapping = match(confusion)
    found = rates(confusion, mapping, list(map(str, range(classes))))
    named = {k: int(c) for k, c in enumerate(mapping) if c >= 0}
    accuracy, precision, mean, weighed = slow_rates(prediction, label, named, classes)
    assert list(found["per_class_accuracy"].values()) == pytest.approx(accuracy)
    assert list(found["per_class_precision"].values()) == pytest.approx(precision)
    assert (found["mean_accuracy"], found["fw_iou"]) == pytest.approx((mean, weighed))
    assert accuracy[-1] is None and precision[-1] is None


def test_rates_by_hand() -> None:
    """Of four road pixels three are found; sky is predicted twice and right once; nobody predicts the third class."""
    confusion = Confusion(3, 3, np.array([[3, 0, 1], [1, 1, 0], [0, 0, 0]]))
    found = rates(confusion, np.arange(3), ["road", "sky", "pole"])
    assert found["per_class_accuracy"] == {"road": 0.75, "sky": 1.0, "pole": 0.0}
    assert found["per_class_precision"] == {"road": 0.75, "sky": 0.5, "pole": None}
    assert found["mean_accuracy"] == pytest.approx(1.75 / 3)
    assert found["fw_iou"] == pytest.approx((4 * 3 / 5 + 1 * 1 / 2 + 0) / 6)


def test_counts_add_up_over_images_and_survive_json() -> None:
    prediction, label = draw(1, 5, 4)
    whole = count(prediction, label, 5, 4)
    parts = {
        str(part): count(prediction[part], label[part], 5, 4).matrix for part in (slice(7), slice(7, None))
    }
    assert sum_confusions(parts) == whole
    assert Confusion.from_list(whole.to_list()) == whole
    assert all(type(n) is int for row in whole.to_list() for n in row)


def test_counts_do_not_overflow_small_types() -> None:
    """A uint8 prediction times 27 classes leaves uint8, and 2^31 pixels leave int32."""
    prediction = np.full((10, 10), 26, dtype=np.uint8)
    confusion = count(prediction, prediction, 27, 27)
    assert confusion.matrix[26, 26] == 100
    big = Confusion(1, 1, np.array([[2**31 - 1]]))
    assert sum_confusions({"a": big.matrix, "b": big.matrix}).total == 2**32 - 2


@pytest.mark.parametrize("clusters", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_hungarian_equals_brute_force(clusters: int, classes: int) -> None:
    """No one-to-one assignment, over all permutations, gets more pixels right."""
    for seed in range(3):
        prediction, label = draw(seed, clusters, classes)
        confusion = count(prediction, label, clusters, classes)
        mapping = match(confusion)
        table = confusion.matrix
        if clusters <= classes:
            best = max(
                sum(table[k, c] for k, c in enumerate(chosen))
                for chosen in itertools.permutations(range(classes), clusters)
            )
        else:
            best = max(
                sum(table[k, c] for c, k in enumerate(chosen))
                for chosen in itertools.permutations(range(clusters), classes)
            )
        used = [c for c in mapping.tolist() if c >= 0]
        assert len(set(used)) == len(used) == min(clusters, classes)
        assert scores(confusion, mapping).accuracy == best / confusion.total


@pytest.mark.parametrize("how", ["hungarian", "many-to-one"])
@pytest.mark.parametrize(("clusters", "classes"), [(5, 5), (9, 4), (3, 6)])
def test_scores_equal_set_arithmetic_on_pixels(how: str, clusters: int, classes: int) -> None:
    prediction, label = draw(2, clusters, classes)
    label[label == 1] = IGNORE  # one class is absent from the labels
    confusion = count(prediction, label, clusters, classes)
    mapping = match(confusion, how)  # type: ignore[arg-type]
    result = scores(confusion, mapping)
    named = {k: c for k, c in enumerate(mapping.tolist()) if c >= 0}
    expected = slow_iou(prediction, label, named, classes)
    assert result.per_class_iou == expected
    assert expected[1] is None
    present = [value for value in expected if value is not None]
    assert result.miou == pytest.approx(sum(present) / len(present))
    assert result.miou_all == pytest.approx(sum(present) / classes)
    assert result.miou_all < result.miou


def test_hand_example_with_an_extra_cluster() -> None:
    """Clusters 0 and 2 both cover class 0; Hungarian keeps the larger, the other's pixels are misses."""
    confusion = Confusion(3, 2, np.array([[6, 0], [1, 5], [4, 0]]))
    one_to_one = scores(confusion, match(confusion, "hungarian"))
    assert one_to_one.mapping == [0, 1, -1]
    assert one_to_one.accuracy == 11 / 16
    assert one_to_one.per_class_iou == [6 / 11, 5 / 6]  # the 4 pixels are no false positives of anything
    merged = scores(confusion, match(confusion, "many-to-one"))
    assert merged.mapping == [0, 1, 0]
    assert merged.accuracy == 15 / 16
    assert merged.per_class_iou == [10 / 11, 5 / 6]


def test_renaming_clusters_changes_nothing() -> None:
    prediction, label = draw(3, 6, 4)
    renamed = np.array([3, 5, 0, 1, 4, 2], dtype=np.uint8)[prediction]
    for how in ("hungarian", "many-to-one"):
        first, second = count(prediction, label, 6, 4), count(renamed, label, 6, 4)
        a, b = scores(first, match(first, how)), scores(second, match(second, how))  # type: ignore[arg-type]
        assert (a.accuracy, a.miou, a.per_class_iou) == (b.accuracy, b.miou, b.per_class_iou)


def test_absent_class_does_not_change_the_denominator_of_miou() -> None:
    """Class 2 is never labelled; predicting it by mistake costs the true class, not an extra zero."""
    confusion = Confusion(3, 3, np.array([[8, 0, 0], [0, 9, 0], [2, 1, 0]]))
    result = scores(confusion, np.array([0, 1, 2]))
    assert result.per_class_iou == [0.8, 0.9, None]
    assert result.miou == pytest.approx(0.85)
    assert result.miou_all == pytest.approx(1.7 / 3)


def test_an_empty_cluster_is_matched_to_nothing_by_majority() -> None:
    confusion = Confusion(2, 2, np.array([[3, 1], [0, 0]]))
    assert match(confusion, "many-to-one").tolist() == [0, -1]


def test_mapping_of_another_set_can_be_scored() -> None:
    """Matching on one half and scoring on the other can only lose against matching on the same half."""
    prediction, label = draw(4, 5, 5)
    fit, held = count(prediction[::2], label[::2], 5, 5), count(prediction[1::2], label[1::2], 5, 5)
    assert scores(held, match(fit)).accuracy <= scores(held, match(held)).accuracy


def test_record_names_the_classes() -> None:
    confusion = Confusion(2, 2, np.array([[3, 0], [1, 0]]))
    record = scores(confusion, match(confusion)).to_dict(["road", "sky"])
    assert record["per_class_iou"] == {"road": 0.75, "sky": None}
    assert record["pixels"] == 4


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros(4, int), "shape"),
        (np.zeros(2), np.zeros(2, int), "integers"),
        (np.array([0, 3]), np.array([0, 0]), "cluster 0 to 2"),
        (np.array([0, -1]), np.array([0, 0]), "cluster 0 to 2"),
        (np.array([0, 0]), np.array([0, 2]), "class 0 to 1"),
    ],
)
def test_bad_pixels_are_refused_and_not_counted(
    prediction: np.ndarray, label: np.ndarray, message: str
) -> None:
    confusion = Confusion(3, 2)
    with pytest.raises(ValueError, match=message):
        confusion.update(prediction, label)
    assert confusion.total == 0


def test_bad_mappings_and_empty_evaluations_are_refused() -> None:
    confusion = Confusion(2, 2, np.eye(2, dtype=np.int64))
    for mapping in ([0], [0, 2], [-2, 0]):
        with pytest.raises(ValueError, match="classes"):
            scores(confusion, np.array(mapping))
    with pytest.raises(UserError, match="no pixel"):
        scores(Confusion(2, 2), np.array([0, 1]))
    with pytest.raises(ValueError, match="unknown matching"):
        match(confusion, "greedy")  # type: ignore[arg-type]


def test_published_conventions_drop_surplus_clusters_and_count_absent_classes() -> None:
    counts = Confusion.from_list([[6, 2, 0], [0, 4, 0], [1, 0, 0], [3, 3, 0]])
    mapping = np.array([0, 1, 2, -1])  # class 2 is predicted but absent, cluster 3 stands for nothing
    found = published_scores(counts, mapping)
    assert found["published_miou"] == pytest.approx((6 / 9 + 4 / 6 + 0) / 3)
    assert found["published_accuracy"] == pytest.approx(10 / 13)
    ours = scores(counts, mapping)
    assert ours.miou == pytest.approx((6 / 12 + 4 / 9) / 2) and ours.accuracy == pytest.approx(10 / 19)
