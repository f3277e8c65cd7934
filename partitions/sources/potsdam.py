"""ISPRS Potsdam, whose tiles of 6000 pixels are cut into small images first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.images import read_image
from common.data.manifest import Entry
from common.errors import UserError
from common.order import natural_key
from common.system.cli import option
from partitions.sources.base import DATASETS, Dataset, LoadJob, SourceFacts

# colors of the published label maps, in the order of the raw ids 0..5
_COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
# the tiles that the benchmark kept for its test
_TEST = frozenset("2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13".split())  # noqa: SIM905
_LABEL_FOLDERS = ("5_Labels_all", "5_Labels_for_participants")


def colours_to_ids(image: npt.NDArray[np.uint8], where: Path) -> npt.NDArray[np.uint8]:
    """Turn a colour-coded label map [H, W, 3] into raw ids 0..5, uint8 [H, W]."""
    ids = np.full(image.shape[:2], 255, dtype=np.uint8)  # 255: no color of the list, so far
    for index, colour in enumerate(_COLOURS):
        ids[(image == np.asarray(colour, dtype=np.uint8)).all(axis=2)] = index
    if (ids == 255).any():
        row, column = np.argwhere(ids == 255)[0]
        raise UserError(
            f"The label map {where} has the colour {tuple(image[row, column].tolist())} at row {row}, column "
            f"{column}; expected the six colours of the benchmark, so use its own files."
        )
    return ids


_OPTIONS = (option("--tile", "PIXELS", "Side of the images cut (default: 400).", type=int, default=400),)


@DATASETS.register(
    "potsdam",
    summary="ISPRS Potsdam, 3 classes; tiles are cut into images, rows of tiles are domains",
    facts=SourceFacts(
        "ROOT/2_Ortho_RGB/top_potsdam_ROW_COLUMN_RGB.tif and ROOT/5_Labels_all (or _for_participants)/"
        "top_potsdam_ROW_COLUMN_label.tif. Images of --tile pixels go to OUT/data; test.jsonl holds those of the "
        "benchmark's 14 test tiles where their labels are at hand.",
        "ISPRS Potsdam",
        place=6,
        options=_OPTIONS,
        classes="potsdam-3",
    ),
)
def _read(job: LoadJob) -> Dataset:
    args, root, stage = job.args, job.root, job.stage
    if args.tile < 32:
        raise UserError(f"--tile is {args.tile}; expected at least 32 pixels.")
    sources = sorted((root / "2_Ortho_RGB").glob("top_potsdam_*_RGB.tif"), key=lambda p: natural_key(p.name))
    images: list[Entry] = []
    evaluation: list[Entry] = []
    for done, source in enumerate(sources, start=1):
        match = re.fullmatch(r"top_potsdam_((\d+)_\d+)_RGB", source.stem)
        if match is None:
            raise UserError(f"{source} is not named top_potsdam_ROW_COLUMN_RGB.tif; restore its name.")
        name, row = match.groups()
        found = [root / f / f"top_potsdam_{name}_label.tif" for f in _LABEL_FOLDERS]
        labels = next((path for path in found if path.is_file()), None)
        if name in _TEST and labels is None:
            continue  # of no use: not for training, and nothing to score against
        made = _cut(source, labels, stage / "data", name, f"row-{row}", args.tile)
        (evaluation if name in _TEST else images).extend(made)
        if job.progress is not None:
            job.progress(done, len(sources))
    return Dataset(
        images,
        stage / "data",
        evaluation={"test": evaluation} if evaluation else {},
        settings={"source": str(root), "tile": args.tile},
    )


def _cut(source: Path, labels: Path | None, data: Path, name: str, domain: str, side: int) -> list[Entry]:
    image = read_image(source)
    ids = None if labels is None else colours_to_ids(read_image(labels), labels)
    if ids is not None and ids.shape != image.shape[:2]:
        raise UserError(f"{source} and its label map {labels} differ in size; restore both files.")
    entries = []
    (data / "images").mkdir(parents=True, exist_ok=True)
    (data / "labels").mkdir(parents=True, exist_ok=True)
    for top in range(0, image.shape[0] - side + 1, side):
        for left in range(0, image.shape[1] - side + 1, side):
            window = slice(top, top + side), slice(left, left + side)
            file = f"{name}_{top:04d}_{left:04d}.png"
            Image.fromarray(image[window]).save(data / "images" / file, compress_level=3)
            if ids is not None:
                Image.fromarray(ids[window]).save(data / "labels" / file, compress_level=3)
            entries.append(Entry(f"images/{file}", None if ids is None else f"labels/{file}", domain))
    return entries
