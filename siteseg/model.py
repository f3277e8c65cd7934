"""Trained models as Python objects: loading a run, segmenting an image, naming and coloring what was found."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

# Heavy imports stand in the functions: `import siteseg` takes no longer than a command's help may.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from common.evaluation.overlay import Legend
    from server.inference.base import Cluster, Predictor

    Bytes = npt.NDArray[np.uint8]


class TrainedModel:
    """A trained model on one device; `load` makes it.

    Attributes:
        names: what each value of a mask is called: the classes, or ``cluster 0`` and so on where nobody named them.
        colors: red, green and blue (0 to 255) of each value.
        named: whether values stand for named things.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._legend: Legend = predictor.legend
        self.names: tuple[str, ...] = self._legend.names
        self.colors: tuple[tuple[int, int, int], ...] = self._legend.colours
        self.named: bool = predictor.named

    def segment(
        self, image: str | Path | Image | npt.ArrayLike, *, flip: bool = False, crf: bool = False
    ) -> Bytes:
        """Return the mask of an image, uint8 [H, W], as large as the image itself.

        Args:
            image: a path, a PIL image, or an array uint8 [H, W, 3] in the order red, green, blue. Files and PIL images
                are turned upright as their EXIF orientation says.
            flip: average with the mirrored image, which takes twice as long.
            crf: refine with the dense CRF.

        Raises:
            UserError: the file cannot be read, or the array has another shape or type.
        """
        pixels = _pixels(image)
        return self._legend.apply(self._predictor.labels(pixels, flip=flip, crf=crf))

    def overlay(self, image: str | Path | Image | npt.ArrayLike, mask: Bytes, alpha: float = 0.55) -> Image:
        """Return the image with its mask laid over it in the model's colors, at strength ``alpha`` (0 to 1)."""
        from PIL import Image as Pillow

        from common.evaluation.overlay import overlay

        return Pillow.fromarray(overlay(_pixels(image), mask, self._legend, alpha))

    def label_image(self, mask: Bytes) -> Image:
        """Return a mask as a palette image: pixel values are those of the mask, the palette has the colors."""
        from common.evaluation.overlay import label_image

        return label_image(mask, self._legend)


def load(
    run_or_file: str | Path, *, device: str = "auto", site: str | None = None, cluster: Cluster = "auto"
) -> TrainedModel:
    """Load a trained model.

    Args:
        run_or_file: a run directory (its newest round counts), a ``round-NNNN.safetensors`` file, or a folder that
            ``siteseg export --hub`` wrote.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:0``.
        site: whose own model, of a run whose sites do not share all.
        cluster: of a run with style clusters: ``auto`` for that of the image's style, ``global``, or a number.

    Raises:
        UserError: there is no such checkpoint, it cannot be read, or its backbone's weights are not at hand.
    """
    from common.checkpoint import load_checkpoint
    from server.tasks.base import task_of

    saved = load_checkpoint(run_or_file)
    return TrainedModel(task_of(saved.config).predictor(saved, str(run_or_file), device, cluster, site))


# What Pillow writes as PNG without loss; TIFF takes the rest.
_PNG_MODES = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})


def _pixels(image: str | Path | Image | npt.ArrayLike) -> Bytes:
    """Return an image as uint8 [H, W, 3]."""
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Image as Pillow

    from common.data.images import read_image
    from common.errors import UserError

    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Pillow):
        # by way of a file, so that gray, 16 bits, palettes and transparency mean the same everywhere
        kind = "png" if image.mode in _PNG_MODES else "tiff"
        with tempfile.TemporaryDirectory(prefix="siteseg-") as folder:
            path = Path(folder) / f"image.{kind}"
            ImageOps.exif_transpose(image).save(path)
            return read_image(path)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(
            f"The array is {pixels.dtype} of shape {list(pixels.shape)}; expected uint8 of shape [H, W, 3], red, green "
            "and blue."
        )
    return np.ascontiguousarray(pixels)
