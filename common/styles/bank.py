"""Style bank: the styles of all sites in one file, and the one that a source image takes on.

``styles.safetensors`` holds one array a site, and in its header what they mean: kind of transfer, common size,
window. One file, so that it is written in one step; ``styles.json`` beside it says the same to a reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.data.images import Bytes
from common.errors import UserError
from common.settings.network import Style
from common.styles.style import StyleArray, apply_style, check_style, draw_uniform, style_shape
from common.system.atomic import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    import torch

# Of a run directory.
BANK_FILE = "styles.safetensors"
# In the folder ``pictures`` of a run directory: source images in the sites' styles.
STYLES_PICTURE = "styles.png"
_HEADER = "style-bank"
_PREFIX = "style/"  # a site may be called like a key of the file format


class _Description(BaseModel):
    """The header of ``styles.safetensors``, and all of ``styles.json``."""

    format: Literal[1] = 1
    kind: str
    size: tuple[int, int]
    window: tuple[int, int]
    sites: list[str] = []


@dataclass(frozen=True)
class StyleBank:
    """The styles of sites, by name: float32 arrays of one shape.

    Attributes:
        kind: transfer that they are made for, `config.Style.transfer`.
        size: common (height, width) in pixels at which they were taken; (0, 0) for ``lab``, which has none.
        window: (rows, columns) of the window in bins; (0, 0) for ``lab``, which has none.
        styles: array of each site, in the order of names.
    """

    kind: str
    size: tuple[int, int]
    window: tuple[int, int]
    styles: dict[str, StyleArray]

    @classmethod
    def of(cls, settings: Style, styles: Mapping[str, np.ndarray]) -> StyleBank:
        """Make a bank for these settings; raises `UserError` naming a site whose style does not fit them."""
        checked = {}
        for site in sorted(styles):
            try:
                checked[site] = check_style(styles[site], settings)
            except ValueError as error:
                raise UserError(f"Site {site}: {error}") from None
        return cls(settings.transfer, *_geometry(settings), checked)

    def check(self, settings: Style) -> None:
        """Raise `UserError` unless the bank was made for this transfer, size and window."""
        wanted = (settings.transfer, *_geometry(settings))
        if (self.kind, self.size, self.window) != wanted:
            raise UserError(
                f"The style bank holds {self.describe()}; the settings ask for "
                f"{_describe(*wanted)}; take the styles again, or set style.* as for the bank."
            )

    def draw(self, generator: torch.Generator) -> tuple[str, StyleArray]:
        """Return one site, each as likely as the others, and its style."""
        self._check_not_empty()
        site = sorted(self.styles)[int(draw_uniform(generator) * len(self.styles))]
        return site, self.styles[site]

    def restyle(self, settings: Style, plain: float = 0.0) -> Callable[[Bytes, torch.Generator], Bytes]:
        """Return what gives an image, uint8 [H, W, 3], the style of a site drawn with its generator.

        A share ``plain`` of the images stays as it is. Raises `UserError` where the bank was not made for
        these settings or is empty.
        """
        self.check(settings)
        self._check_not_empty()

        def change(image: Bytes, generator: torch.Generator) -> Bytes:
            untouched = draw_uniform(generator) < plain
            _, style = self.draw(generator)  # also where it is not used: the draws to come stay the same
            return image if untouched else apply_style(image, style, settings, generator)

        return change

    def describe(self) -> str:
        """Say what the bank holds, for a sentence or a caption."""
        return _describe(self.kind, self.size, self.window)

    def save(self, path: str | Path) -> None:
        """Write ``path`` (.safetensors) and its JSON, each in one step."""
        sites = sorted(self.styles)
        about = _Description(kind=self.kind, size=self.size, window=self.window, sites=sites)
        described = json.dumps(about.model_dump(mode="json"))
        arrays = {_PREFIX + site: np.ascontiguousarray(self.styles[site]) for site in sorted(self.styles)}
        atomic_write_text(Path(path).with_suffix(".json"), described + "\n")
        atomic_write_bytes(path, save(arrays, metadata={_HEADER: described}))

    @classmethod
    def load(cls, path: str | Path, settings: Style) -> StyleBank:
        """Read a bank for these settings.

        Raises `UserError` where the file is missing, damaged, no bank, or of another size, window or kind.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"The style bank {file} does not exist; give the styles.safetensors of a run.")
        try:
            with safe_open(file, framework="np") as opened:
                header = (opened.metadata() or {}).get(_HEADER)
                names = opened.keys()
                arrays = {name.removeprefix(_PREFIX): opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"The style bank {file} cannot be read ({error}); take the styles again."
            ) from None
        try:
            described = _Description.model_validate_json(header or "")
        except ValidationError:
            raise UserError(
                f"{file} is not a style bank of this program; give the styles.safetensors of a run."
            ) from None
        cls(described.kind, described.size, described.window, {}).check(settings)
        return cls.of(settings, arrays)

    def _check_not_empty(self) -> None:
        if not self.styles:
            raise UserError("The style bank is empty; let at least one site send its style.")


def _geometry(settings: Style) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return common size and window of styles, as `StyleBank` holds them."""
    shape = style_shape(settings)
    if settings.transfer == "lab":
        return (0, 0), (0, 0)
    return (settings.height, settings.width), (shape[1], shape[2])


def _describe(kind: str, size: tuple[int, int], window: tuple[int, int]) -> str:
    if not any(size):
        return f"{kind!r} styles"
    return f"{kind!r} styles of a {window[0]} x {window[1]} window at {size[0]} x {size[1]} pixels"
