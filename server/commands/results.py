"""What is written of segmented images beside masks and overlays: outlines, areas, and COCO annotations.

COCO's run lengths follow https://github.com/cocodataset/cocoapi (common/maskApi.c): columns from the left, the first
run is of zeros, and the text packs differences of runs in groups of five bits.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.images import Bytes
from common.evaluation.overlay import Legend, colourise
from common.system.atomic import atomic_write_text

AREAS_CSV, AREAS_JSON, COCO = "areas.csv", "areas.json", "coco.json"


def outlined(image: Bytes, ids: Bytes, legend: Legend) -> Bytes:
    """Return the image with lines, two pixels wide, in the colors of the classes that meet."""
    edge = np.zeros(ids.shape, dtype=bool)
    for axis in (0, 1):
        differ = np.diff(ids.astype(np.int16), axis=axis) != 0
        before: list[slice] = [slice(None), slice(None)]
        after = list(before)
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edge[tuple(before)] |= differ
        edge[tuple(after)] |= differ
    shown = image.copy()
    shown[edge] = colourise(ids, legend)[edge]
    return shown


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the lengths of runs of a mask [H, W], column by column; the first is of zeros and may be 0."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    places = np.flatnonzero(flat[1:] != flat[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], places, [mask.size]])).tolist()
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def packed_runs(runs: list[int]) -> str:
    """Return run lengths as COCO's text."""
    text = []
    for index, run in enumerate(runs):
        left = run - runs[index - 2] if index > 2 else run
        while True:
            bits = left & 0x1F
            left >>= 5
            done = left == -1 if bits & 0x10 else left == 0
            text.append(chr(bits + (0 if done else 0x20) + 48))
            if done:
                break
    return "".join(text)


@dataclass
class Results:
    """Collects areas and annotations over images; `write` makes the files of all of them."""

    legend: Legend
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, file: str, ids: Bytes) -> None:
        """Take the map of ids uint8 [H, W] of the image ``file``, whose results are called ``name``."""
        height, width = ids.shape
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": file, "height": height, "width": width})
        counts = np.bincount(ids.ravel(), minlength=256)
        for index in np.flatnonzero(counts[: len(self.legend.names)]):
            pixels = int(counts[index])
            self.rows.append(
                {
                    "image": name,
                    "id": int(index),
                    "name": self.legend.names[index],
                    "pixels": pixels,
                    "share": round(pixels / ids.size, 6),
                }
            )
            self.shares.setdefault(name, {})[self.legend.names[index]] = round(pixels / ids.size, 6)
            self.annotations.append(self._annotation(number, int(index), ids == index))

    def _annotation(self, image: int, category: int, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        return {
            "id": len(self.annotations) + 1,
            "image_id": image,
            "category_id": category,
            "segmentation": {"size": list(mask.shape), "counts": packed_runs(run_lengths(mask))},
            "area": int(mask.sum()),
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "iscrowd": 1,  # all of a class, not one object
        }

    def write(self, folder: Path) -> None:
        """Write areas as CSV and JSON, and all masks as COCO annotations."""
        table = io.StringIO()
        writer = csv.DictWriter(table, ["image", "id", "name", "pixels", "share"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write_text(folder / AREAS_CSV, table.getvalue())
        atomic_write_text(folder / AREAS_JSON, json.dumps(self.totals(), indent=1, ensure_ascii=False) + "\n")
        categories = [{"id": one["id"], "name": one["name"]} for one in self.legend.as_json()]
        record = {"images": self.images, "annotations": self.annotations, "categories": categories}
        atomic_write_text(folder / COCO, json.dumps(record, ensure_ascii=False) + "\n")

    def sentence(self, name: str) -> str:
        """Return the areas of one image, largest first."""
        shares = sorted(self.shares[name].items(), key=lambda pair: -pair[1])
        return ", ".join(f"{what} {100 * part:.1f} %" for what, part in shares)

    def totals(self) -> dict[str, Any]:
        """Return areas by image and of all images together, by name."""
        pixels: dict[str, int] = {}
        for row in self.rows:
            pixels[row["name"]] = pixels.get(row["name"], 0) + row["pixels"]
        total = max(1, sum(pixels.values()))
        classes = {
            name: {"pixels": count, "share": round(count / total, 6)} for name, count in pixels.items()
        }
        return {"images": self.shares, "classes": classes}
