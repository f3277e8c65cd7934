"""Confusion matrix, matching of clusters to classes, accuracy, IoU and mIoU.

Every labelled pixel is counted in a `Confusion` (cluster by class). Counts add up over images and sites, so
that there is one matrix for a whole evaluation set; it is matched once (`match`) and scored once (`scores`).
Averaging the scores of sites would be another, meaningless figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from common.data.classes import IGNORE
from common.errors import UserError

UNMATCHED = -1  # the class of a cluster that stands for nothing

MatchRule = Literal["hungarian", "many-to-one", "identity"]


class Confusion:
    """Pixel counts [K, C] int64: rows are predicted clusters, columns true classes."""

    def __init__(self, clusters: int, classes: int, matrix: np.ndarray | None = None) -> None:
        if clusters < 1 or classes < 1:
            raise ValueError(f"a confusion matrix needs clusters and classes, got {clusters} and {classes}")
        if matrix is None:
            matrix = np.zeros((clusters, classes), dtype=np.int64)
        if matrix.shape != (clusters, classes) or matrix.dtype.kind not in "iu" or (matrix < 0).any():
            raise ValueError(
                f"expected counts of shape {(clusters, classes)}, got {matrix.dtype} {matrix.shape}"
            )
        self.matrix: NDArray[np.int64] = matrix.astype(np.int64)

    @property
    def clusters(self) -> int:
        """K, the number of clusters."""
        return int(self.matrix.shape[0])

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return int(self.matrix.shape[1])

    @property
    def total(self) -> int:
        """How many labelled pixels were counted."""
        return int(self.matrix.sum())

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count the pixels of one or more images; pixels labelled `IGNORE` do not count.

        Args:
            prediction: cluster of each pixel, integers 0..K-1, any shape.
            label: class of each pixel, integers 0..C-1 or 255, same shape.

        Raises `ValueError` for other shapes, types or values; nothing has been counted then.
        """
        if prediction.shape != label.shape:
            raise ValueError(f"prediction has shape {prediction.shape} but label has {label.shape}")
        if prediction.dtype.kind not in "iu" or label.dtype.kind not in "iu":
            raise ValueError(
                f"expected integers, got {prediction.dtype} predictions and {label.dtype} labels"
            )
        if prediction.dtype == label.dtype == np.uint8:
            self.matrix += self._bytes_counted(prediction, label)
            return
        counted = label != IGNORE
        cluster = prediction[counted].astype(np.int64)
        truth = label[counted].astype(np.int64)
        for name, values, end in (("cluster", cluster, self.clusters), ("class", truth, self.classes)):
            if values.size and not (values.min() >= 0 and values.max() < end):
                raise ValueError(f"expected {name} 0 to {end - 1}, got {values.min()} to {values.max()}")
        counts = np.bincount(cluster * self.classes + truth, minlength=self.matrix.size)
        self.matrix += counts.reshape(self.matrix.shape)

    def _bytes_counted(self, prediction: np.ndarray, label: np.ndarray) -> NDArray[np.int64]:
        """Return the counts of bytes, without a copy of what is counted: nine times as fast."""
        joint = prediction.astype(np.uint16)
        joint <<= 8
        joint |= label
        pairs = np.bincount(joint.ravel(), minlength=1 << 16).reshape(256, 256)
        pairs[:, IGNORE] = 0
        counts = pairs[: self.clusters, : self.classes]
        if counts.sum() != pairs.sum():
            for name, axis, end in (("cluster", 1, self.clusters), ("class", 0, self.classes)):
                seen = np.flatnonzero(pairs.any(axis=axis))
                if seen[-1] >= end:
                    raise ValueError(f"expected {name} 0 to {end - 1}, got {seen[0]} to {seen[-1]}")
        return counts

    def add(self, other: Confusion) -> None:
        """Add the counts of another one of the same shape."""
        self.matrix += other.matrix

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and np.array_equal(self.matrix, other.matrix)

    __hash__ = None  # type: ignore[assignment]  # it changes with every update

    def to_list(self) -> list[list[int]]:
        """Return plain integers for JSON, one list per cluster."""
        return [[int(count) for count in row] for row in self.matrix]

    @classmethod
    def from_list(cls, rows: Sequence[Sequence[int]]) -> Confusion:
        """Read what `to_list` wrote."""
        matrix = np.array(rows, dtype=np.int64)
        if matrix.ndim != 2:
            raise ValueError(f"expected a table of counts, got shape {matrix.shape}")
        return cls(matrix.shape[0], matrix.shape[1], matrix)


def sum_confusions(parts: Mapping[str, np.ndarray]) -> Confusion:
    """Sum counts [K, C] in the order of their names; at least one."""
    total = sum((parts[name].astype(np.int64) for name in sorted(parts)), start=np.int64(0))
    return Confusion.from_list(np.asarray(total).tolist())


@dataclass(frozen=True)
class Scores:
    """Fractions, not per cent.

    Attributes:
        accuracy: share of labelled pixels whose cluster is mapped to their class.
        miou: mean intersection over union of the classes that occur in the labels.
        miou_all: the same sum divided by the number of all classes, so that absent ones count as 0.
        per_class_iou: by class; None where the class does not occur in the labels.
        mapping: class of each cluster, -1 for none.
        pixels: labelled pixels behind the scores.
    """

    accuracy: float
    miou: float
    miou_all: float
    per_class_iou: list[float | None]
    mapping: list[int]
    pixels: int

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return a record for JSON, values of classes by name."""
        return asdict(self) | {"per_class_iou": dict(zip(names, self.per_class_iou, strict=True))}


def match(confusion: Confusion, how: MatchRule = "hungarian") -> NDArray[np.int64]:
    """Return the class [K] that each cluster stands for, or -1 for none.

    * hungarian: one class per cluster and one cluster per class, at the largest number of right pixels.
      With more clusters than classes the others stand for nothing; with fewer, some classes have no cluster.
    * many-to-one: each cluster stands for its most frequent class (ties: the first); empty ones for nothing.
    * identity: outputs were trained as these classes, in this order; no label is looked at.

    The first two look at the labels, as is usual in this field; fit on one half and score on the other to see what
    that is worth.
    """
    mapping = np.full(confusion.clusters, UNMATCHED, dtype=np.int64)
    if how == "hungarian":
        clusters, classes = linear_sum_assignment(confusion.matrix, maximize=True)
        mapping[clusters] = classes
    elif how == "many-to-one":
        used = confusion.matrix.any(axis=1)
        mapping[used] = confusion.matrix[used].argmax(axis=1)
    elif how == "identity":
        mapping[:] = np.arange(confusion.clusters)
    else:
        raise ValueError(f"unknown matching {how!r}; expected 'hungarian', 'many-to-one' or 'identity'")
    return mapping


def scores(confusion: Confusion, mapping: np.ndarray) -> Scores:
    """Score a confusion under a mapping of clusters to classes (see `match`).

    Per class, IoU = TP / (TP + FP + FN). Pixels of a cluster that stands for nothing are false negatives of
    their true class and false positives of none. Classes absent from the labels get no IoU of their own,
    even where they are predicted by mistake; so the denominator of ``miou`` depends on the labels alone.

    Raises `ValueError` for a mapping that does not fit, `UserError` if no labelled pixel was counted.
    """
    by_class = _by_class(confusion, mapping)
    right = np.diag(by_class)
    labelled = confusion.matrix.sum(axis=0)
    union = by_class.sum(axis=1) + labelled - right
    iou = [float(right[c] / union[c]) if labelled[c] else None for c in range(confusion.classes)]
    present = [value for value in iou if value is not None]
    return Scores(
        accuracy=float(right.sum() / confusion.total),
        miou=sum(present) / len(present),
        miou_all=sum(present) / confusion.classes,
        per_class_iou=iou,
        mapping=np.asarray(mapping).tolist(),
        pixels=confusion.total,
    )


def published_scores(confusion: Confusion, mapping: np.ndarray) -> dict[str, float]:
    """Return accuracy and mIoU by the conventions of published code (STEGO, FUSS); raises as `scores`.

    Pixels of clusters that stand for nothing leave all counts, so that no class misses them. A class that is
    predicted but absent from the labels counts 0; one that is neither does not count.
    """
    by_class = _by_class(confusion, mapping)
    right = np.diag(by_class)
    union = by_class.sum(axis=1) + by_class.sum(axis=0) - right
    counted = union > 0
    if not counted.any():
        return {"published_accuracy": 0.0, "published_miou": 0.0}
    return {
        "published_accuracy": float(right.sum() / by_class.sum()),
        "published_miou": float((right[counted] / union[counted]).mean()),
    }


def rates(confusion: Confusion, mapping: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return a record, for JSON, of what stands beside IoU in this field; raises as `scores`. All are fractions.

    * mean_accuracy: mean of the accuracies of the classes in the labels.
    * fw_iou: sum of IoU over these classes, each weighed by its share of the labelled pixels.
    * per_class_accuracy: TP / (TP + FN), the recall; None where the class does not occur in the labels.
    * per_class_precision: TP / (TP + FP) of classes in the labels; None as well where none is predicted.
    """
    by_class = _by_class(confusion, mapping)
    right, guessed = np.diag(by_class), by_class.sum(axis=1)
    labelled = confusion.matrix.sum(axis=0)
    present = np.flatnonzero(labelled)
    union = (guessed + labelled - right)[present]

    def by_name(denominators: np.ndarray) -> dict[str, float | None]:
        each = zip(names, right, labelled, denominators, strict=True)
        return {name: float(r / d) if known and d else None for name, r, known, d in each}

    return {
        "mean_accuracy": float((right[present] / labelled[present]).mean()),
        "fw_iou": float((labelled[present] / confusion.total * (right[present] / union)).sum()),
        "per_class_accuracy": by_name(labelled),
        "per_class_precision": by_name(guessed),
    }


def _by_class(confusion: Confusion, mapping: np.ndarray) -> NDArray[np.int64]:
    """Return counts [C, C], predicted by true class; clusters that stand for nothing are left out."""
    mapping = np.asarray(mapping)
    if mapping.shape != (confusion.clusters,) or mapping.dtype.kind not in "iu":
        raise ValueError(f"expected {confusion.clusters} classes, got {mapping.dtype} {mapping.shape}")
    if mapping.min() < UNMATCHED or mapping.max() >= confusion.classes:
        raise ValueError(f"expected classes -1 to {confusion.classes - 1}, got {mapping.tolist()}")
    if confusion.total == 0:
        raise UserError(
            "Cannot score: no pixel of the evaluation images has a label; give images with labels."
        )
    matched = mapping != UNMATCHED
    by_class = np.zeros((confusion.classes, confusion.classes), dtype=np.int64)
    np.add.at(by_class, mapping[matched], confusion.matrix[matched])
    return by_class
