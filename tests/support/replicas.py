"""How does a test write the pictures and label maps of a tiny replica of a public data set?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (8, 16)


def put_picture(path: Path, size: tuple[int, int] = SIZE, grey: int = 90) -> None:
    """Write a grey picture of a size (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, dtype=np.uint8)).save(path)


def put_label(path: Path, values: Sequence[int], size: tuple[int, int] = SIZE, palette: bool = False) -> None:
    """Write a label map that repeats ``values``; with ``palette`` as indices of colours of no meaning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.resize(np.asarray(values, dtype=np.uint8), size))
    if palette:
        picture.putpalette([(7 * i + 100) % 256 for i in range(768)])
    picture.save(path)
