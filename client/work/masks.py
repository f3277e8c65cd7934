"""Masks that a site makes of its own images by the clusters of a first stage, and keeps in its cache folder.

A folder of masks belongs to a model and to images (``masks/SHARD-KEY``), and appears in one step, complete. A mask is
a PNG of its image's size: clusters, `UNSURE` for the pixels that lead least, `IGNORE` for what the model did not see.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from client.site import SiteConfig
from common import wire
from common.checkpoint import Checkpoint
from common.data.images import Bytes, images_key
from common.data.manifest import Shard
from common.errors import UserError
from common.evaluation.certainty import Thresholds, certain_predictions
from common.models.input_size import fitted_to
from common.models.segmenter import Segmenter
from common.settings.schema import RunConfig

UNSURE = 254
"""Pixels of no certain cluster; padding beside the image is `common.data.classes.IGNORE`."""

KEPT = 4
"""Folders of masks of one shard that may lie side by side (other models or shares); the least recently used go."""

_COUNTS = "counts.json"


@dataclass(frozen=True)
class Masks:
    """Masks of a shard's images; ``counts`` int64 [K] are their certain pixels by cluster."""

    folder: Path
    counts: np.ndarray

    def read(self, index: int) -> Bytes:
        """Return the mask of an image, uint8 [H, W]."""
        try:
            with Image.open(self.folder / f"{index:06d}.png") as opened:
                return np.array(opened, dtype=np.uint8)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError("A mask cannot be read any more; all of them will be made again.") from None


def open_masks(model_key: str, shard: Shard, settings: RunConfig, site: SiteConfig) -> Masks | None:
    """Return the masks that a first stage's model made of a shard's images, None where there are none."""
    folder = _folder(model_key, shard, settings, site)
    try:
        counts = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        os.utime(folder)  # in use
    return Masks(folder, np.array(counts, dtype=np.int64))


def make_masks(task: wire.Task, shard: Shard, settings: RunConfig, site: SiteConfig) -> Masks:
    """Return the masks of a shard by the model of the message, made now where they do not lie here.

    Raises `UserError` where this site's backbone is not the first stage's, and where they cannot be written.
    """
    key = str(task.options["masks"])
    known = open_masks(key, shard, settings, site)
    if known is not None:
        return known
    fitted = fitted_to(settings, shard)
    features = site.features(
        fitted, shard
    )  # those of training: finer ones would take the backbone's passes again
    backbone = str(task.options["backbone"])
    if features.weights_hash != backbone:
        raise UserError(
            f"The first stage had the backbone weights {backbone[:12]}, this site has {features.weights_hash[:12]}; "
            "use the same weights file."
        )
    saved = Checkpoint(
        round=0,
        head=task.groups["head"],
        centroids=task.groups["centroids"]["centroids"],
        config=fitted,
        classes=None,
        weights_hash=backbone,
        channels=features.channels,
        grid=features.grid,
        extra=task.groups.get("extra", {}),
    )
    segmenter = Segmenter.from_checkpoint(saved, model=fitted.model).to(site.torch_device())
    folder = _folder(key, shard, settings, site)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            half = Path(temporary) / folder.name
            half.mkdir()
            _write(half, certain_predictions(segmenter, features, shard, fitted), segmenter, settings)
            with suppress(OSError):  # another process made them meanwhile
                half.rename(folder)
        _forget(folder)
    except OSError as error:
        raise UserError(
            f"Masks cannot be written to {folder.parent}: {error.strerror or error}; free some space, or choose "
            "another cache folder."
        ) from None
    made = open_masks(key, shard, settings, site)
    if made is None:
        raise UserError(f"The masks in {folder} went away while they were made; start again.")
    return made


def _write(half: Path, predictions: object, segmenter: Segmenter, settings: RunConfig) -> None:
    """Predict all images, find from which margin on a pixel of each cluster is certain, and write what is."""
    clusters = segmenter.num_clusters
    thresholds = Thresholds(clusters)
    images = 0
    for index, labels, leads in predictions:  # type: ignore[attr-defined]
        thresholds.add(labels, leads)
        np.savez(half / f"{index:06d}.npz", labels=labels, leads=leads)
        images += 1
    least = np.append(thresholds.least(settings.student.keep), np.zeros(256 - clusters, dtype=np.float16))
    counts = np.zeros(256, dtype=np.int64)
    for index in range(images):
        first = half / f"{index:06d}.npz"
        with np.load(first, allow_pickle=False) as held:
            labels, leads = held["labels"], held["leads"]
        mask = np.where(leads >= least[labels], labels, UNSURE).astype(np.uint8)
        counts += np.bincount(mask.ravel(), minlength=256)
        Image.fromarray(mask).save(first.with_suffix(".png"))
        first.unlink()
    (half / _COUNTS).write_text(json.dumps(counts[: settings.model.clusters].tolist()), encoding="utf-8")


def _folder(model_key: str, shard: Shard, settings: RunConfig, site: SiteConfig) -> Path:
    # the key comes from the server: whatever it says is hashed, so that the folder stays below the cache folder
    parts = (settings.model, settings.things, settings.codes, settings.refine)
    text = json.dumps(
        [model_key, images_key(shard), settings.student.keep, *(part.model_dump() for part in parts)]
    )
    slug = hashlib.sha256(str(shard.path.resolve()).encode()).hexdigest()[:8]
    return site.cache_dir / "masks" / f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _forget(folder: Path) -> None:
    """Remove the masks of a shard that were not used for longest."""
    shard = folder.name.partition("-")[0]
    found = sorted(folder.parent.glob(f"{shard}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in [path for path in found if path != folder][KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
