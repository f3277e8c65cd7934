"""Decodes image files of all supported formats to 8-bit RGB, within a bound on their size.

Pillow reads the common formats, and only those named here: it would start Ghostscript for an EPS called ``.png``.
What it cannot hold (more than three channels, more than 8 bits a channel) and what other packages read is in
`common.data.volumes`.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from common.errors import UserError

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.generic]
_N = TypeVar("_N", int, float)

# what Pillow may try, whatever a file is called
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
PILLOW_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jp2",
    ]
)
# ending -> the package that reads it; an extra of the project installs all of them
EXTRA_SUFFIXES = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".avif": "pillow-heif",
    ".dcm": "pydicom",
    ".dicom": "pydicom",
    ".nii": "nibabel",
    ".nii.gz": "nibabel",
}
SUFFIXES = PILLOW_SUFFIXES | EXTRA_SUFFIXES.keys()
# Pixels of the largest image that is decoded: about 600 MB of memory for a moment. A file of 0.35 MB may hold more.
MOST_PIXELS = 64_000_000
# Values of more than 8 bits are spread from the first to the second of these quantiles of the file. The very ends are
# left out: one hot pixel would darken all others.
OWN_RANGE = (0.001, 0.999)
for _format in ("Jpeg", "Png", "Bmp", "Tiff", "WebP", "Gif", "Ppm", "Jpeg2K"):
    importlib.import_module(f"PIL.{_format}ImagePlugin")  # Pillow does not know a format before
# more pixels than `MOST_PIXELS` are refused in a sentence of our own
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
_READ_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_FRAME = re.compile(r"#(\d+)$")


@dataclass(frozen=True)
class Reading:
    """How values of a file become 8-bit RGB.

    ``window``: lowest and highest value of images of more than 8 bits; None: the file's own range.
    ``channels``: numbers, from 1 up, of the channels that are seen as red, green and blue; None: the first three.
    """

    window: tuple[float, float] | None = None
    channels: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise UserError(
                f"The window {self.window[0]:g} to {self.window[1]:g} is empty; expected LOW,HIGH with LOW below HIGH."
            )
        if self.channels is not None and (len(self.channels) != 3 or min(self.channels) < 1):
            raise UserError(f"The channels {self.channels} are no choice; expected three numbers from 1 up.")

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> Reading:
        """Read what `as_settings` wrote among the notes of a data set; `UserError` for anything else."""
        window, channels = settings.get("window"), settings.get("channels")
        try:
            return cls(
                None if window is None else (float(window[0]), float(window[1])),
                None if channels is None else (int(channels[0]), int(channels[1]), int(channels[2])),
            )
        except (TypeError, ValueError, IndexError, KeyError):
            raise UserError(
                f"{where} window {window!r} and channels {channels!r} are not two and three numbers; "
                "make the shards again."
            ) from None

    def as_settings(self) -> dict[str, list[float] | list[int]]:
        """Return what stands in ``partition.json``; nothing for the default."""
        found: dict[str, list[float] | list[int]] = {}
        if self.window is not None:
            found["window"] = list(self.window)
        if self.channels is not None:
            found["channels"] = list(self.channels)
        return found


AS_FOUND = Reading()


def _numbers(text: str | None, kind: type[_N], count: int, option: str) -> tuple[_N, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(kind(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise UserError(f"{option} is {text!r}; expected {count} numbers with commas between them.")
    return numbers


def parse_reading(window: str | None, channels: str | None) -> Reading:
    """Read the options ``--window LOW,HIGH`` and ``--channels R,G,B``; raises `UserError` for anything else."""
    low_high, three = _numbers(window, float, 2, "--window"), _numbers(channels, int, 3, "--channels")
    return Reading(
        None if low_high is None else (low_high[0], low_high[1]),
        None if three is None else (three[0], three[1], three[2]),
    )


def suffix_of(path: str | Path) -> str:
    """Return the ending of a file in small letters, ``.nii.gz`` as a whole; that of an image in a file of many."""
    name = _FRAME.sub("", Path(path).name).lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def split_frame(path: str | Path) -> tuple[Path, int | None]:
    """Return the file of an image and its place in it: ``brain.nii.gz#12`` is slice 12; None: all of the file."""
    whole = Path(path)
    found = _FRAME.search(whole.name)
    if found is None or suffix_of(whole) not in EXTRA_SUFFIXES or whole.exists():
        return whole, None
    return whole.with_name(whole.name[: found.start()]), int(found.group(1))


@contextmanager
def opened_image(path: str | Path, what: str = "image") -> Iterator[Image.Image]:
    """Open a file by Pillow; what goes wrong, decoding included, becomes a `UserError` that names the file.

    Nothing of the pixels is decoded here. An image of more than `MOST_PIXELS` is refused.
    """
    source = Path(path)
    try:
        with Image.open(source, formats=PILLOW_FORMATS) as opened:
            check_pixels(source, opened.width, opened.height)
            yield opened
    except UserError:
        raise
    except (*_READ_ERRORS, MemoryError) as error:
        raise unreadable(source, what, error) from None


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise `UserError` for an image of too many pixels, or of none."""
    if width * height > MOST_PIXELS:
        raise UserError(
            f"The image {shown(path)} has {width} x {height} pixels, more than {MOST_PIXELS:,}; cut it into tiles or "
            "make it smaller."
        )
    if width * height == 0:
        raise UserError(f"The image {shown(path)} has no pixel; remove it.")


def shown(path: str | Path) -> str:
    """Return a path that can be printed: bytes that are no text, and breaks of lines, as escapes."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda found: repr(found.group())[1:-1], text)


def unreadable(path: Path, what: str, error: Exception) -> UserError:
    """Say in one sentence why a file could not be read."""
    name = shown(path)
    if not path.exists():
        return UserError(f"The {what} {name} does not exist; correct the manifest or the data root.")
    if isinstance(error, PermissionError):
        return UserError(f"The {what} {name} may not be read (permission denied); change its permissions.")
    if path.is_file() and path.stat().st_size == 0:
        return UserError(f"The {what} {name} is empty; replace it or remove it.")
    if isinstance(error, UnidentifiedImageError):
        kinds = "JPEG, PNG, BMP, TIFF, WebP, GIF, PPM or JPEG 2000"
        return UserError(f"{name} is no picture that can be read; expected {kinds}.")
    return UserError(
        f"The {what} {name} is damaged or truncated ({shown(str(error))}); replace it or remove it."
    )


def to_rgb(values: Values, reading: Reading, path: Path) -> Bytes:
    """Turn values [H, W] or [H, W, C] of any number type into uint8 [H, W, 3].

    Bytes stay as they are; all else is spread over ``reading.window`` or the file's own range (`OWN_RANGE`).
    Raises `UserError` for a channel that the file does not have.
    """
    if values.ndim == 2:
        values = values[:, :, None]
    count = values.shape[2]
    if reading.channels is not None and count > 1:
        if max(reading.channels) > count:
            raise UserError(
                f"The image {shown(path)} has {count} channels, but channel {max(reading.channels)} was asked for; "
                "correct --channels."
            )
        values = values[:, :, [channel - 1 for channel in reading.channels]]
    else:
        values = values[:, :, :3] if count >= 3 else values[:, :, :1]
    if values.dtype != np.uint8:
        values = _scaled(values, reading.window)
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), dtype=np.uint8)


def own_range(values: Values) -> tuple[float, float]:
    """Return the range of a file's values: `OWN_RANGE`, or all of it where nearly all values are one."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if not finite.size:
        return 0.0, 1.0
    # a million values say as much as all of them
    sample = np.sort(finite[:: max(1, finite.size // 1_000_000)])
    low, high = (float(sample[round(part * (len(sample) - 1))]) for part in OWN_RANGE)
    return (low, high) if low < high else (float(finite.min()), float(finite.max()))


def _scaled(values: Values, window: tuple[float, float] | None) -> Bytes:
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    low, high = own_range(values) if window is None else window
    factor = 255.0 / (high - low) if high > low else 0.0
    if values.dtype in (np.uint16, np.int16):  # by a table: no array of floats beside the image
        steps = np.arange(65536, dtype=np.uint16).view(values.dtype).astype(np.float64)
        table = np.clip((steps - low) * factor + 0.5, 0, 255).astype(np.uint8)
        scaled: Bytes = table[values.view(np.uint16)]
        return scaled
    floats = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    spread: Bytes = np.clip((floats - low) * factor + 0.5, 0, 255).astype(np.uint8)
    return spread
