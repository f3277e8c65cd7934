"""A folder of odd images: one of each kind that people have, and what becomes of it."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (36, 48)


def photo(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return a smooth random image uint8 [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def deep_png(path: Path, values: np.ndarray) -> None:
    """Write uint16 [H, W, C] as a PNG of 16 bits a channel, which Pillow cannot."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + values[y].astype(">u2").tobytes() for y in range(height))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def bomb(path: Path, side: int = 13_000) -> None:
    """Write a PNG of a few hundred kB that is ``side`` squared pixels of one color."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def write_pillow(folder: Path) -> list[str]:
    """Write images that need no other package; return their names."""
    image = Image.fromarray(photo())
    gray = image.convert("L")
    twelve = (np.asarray(gray).astype(np.uint16) * 16)[..., None]
    names = [
        "rgb.jpg",
        "gray.png",
        "palette.png",
        "one-bit.png",
        "photo.bmp",
        "photo.ppm",
        "photo.jp2",
        "photo.webp",
        "rgb.tif",
    ]
    for name in names:
        kind = {"gray.png": gray, "palette.png": image.quantize(16), "one-bit.png": gray.convert("1")}
        kind.get(name, image).save(folder / name)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    gray.convert("LA").save(folder / "gray-alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(twelve[..., 0]).save(folder / "twelve-bits.png")
    Image.fromarray(twelve[..., 0]).save(folder / "twelve-bits.tif")
    deep_png(folder / "deep-colors.png", photo(1).astype(np.uint16) * 16)
    deep_png(folder / "deep-alpha.png", np.concatenate([twelve, twelve * 0 + 65535], axis=2))
    Image.fromarray(np.asarray(gray).astype(np.float32) / 255 - 0.5).save(folder / "float.tif")
    image.quantize(8).save(folder / "clear.gif", transparency=0)
    gray.save(folder / "moving.gif", save_all=True, append_images=[gray.rotate(90)])
    image.save(folder / "pages.tif", save_all=True, append_images=[image, image])
    image.save(folder / "really-a-png.jpg", format="PNG")
    Image.fromarray(photo(2, (1, 1))).save(folder / "one-pixel.png")
    Image.fromarray(photo(3, (3, 700))).save(folder / "very-wide.png")
    deep = folder / "東京" / "Ελλάδα café"
    deep.mkdir(parents=True)
    image.save(deep / "снимок 1.jpg")
    for name in ("line\u2028end.png", "page\u2029end.png", "next\u0085line.png", "a'b\"c <i>.png"):
        image.save(folder / name)
    more = "cmyk.jpg alpha.png gray-alpha.png turned.jpg twelve-bits.png twelve-bits.tif deep-colors.png "
    more += (
        "deep-alpha.png float.tif clear.gif moving.gif pages.tif really-a-png.jpg one-pixel.png very-wide.png"
    )
    odd = ["line\u2028end.png", "page\u2029end.png", "next\u0085line.png", "a'b\"c <i>.png"]
    return [*names, *more.split(), "東京/Ελλάδα café/снимок 1.jpg", *odd]


def write_refused(folder: Path, outside: Path) -> list[str]:
    """Write files that cannot be segmented; return a part of the sentence about each."""
    whole = folder / "rgb.jpg"
    (folder / "half.jpg").write_bytes(whole.read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "words.jpg").write_text("no picture")
    (folder / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    bomb(folder / "bomb.png")
    (folder / "film.mp4").write_bytes(b"film")
    outside.mkdir()
    Image.fromarray(photo(9)).save(outside / "elsewhere.png")
    (folder / "out.png").symlink_to(outside / "elsewhere.png")
    (folder / "folder-out").symlink_to(outside)
    (folder / "dead.png").symlink_to("gone.png")
    (folder / "again.jpg").symlink_to("rgb.jpg")  # in silence: it is there already
    Image.fromarray(photo(4)).save(folder / "back\\slash.png")
    Image.fromarray(photo(5)).save(os.fsencode(folder) + b"/latin-\xe9.png")
    refused = [
        "half.jpg",
        "empty.png",
        "words.jpg",
        "postscript.png",
        "bomb.png",
        ".mp4",
        "out.png",
        "folder-out",
        "dead.png",
    ]
    return [*refused, "back\\slash.png", "latin-\\xe9.png"]


def write_volumes(folder: Path) -> list[str]:
    """Write images that other packages read; return their names. Needs those packages."""
    import nibabel
    import pillow_heif
    import pydicom
    import rasterio
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = photo(6)
    pillow_heif.from_pillow(Image.fromarray(image)).save(folder / "phone.heic")
    shape = {"height": SIZE[0], "width": SIZE[1], "driver": "GTiff"}
    with rasterio.open(folder / "five-bands.tif", "w", count=5, dtype="uint16", **shape) as target:
        for band in range(5):
            target.write(image[..., band % 3].astype(np.uint16) * (20 + band), band + 1)
    with rasterio.open(
        folder / "deep-colors.tif", "w", count=3, dtype="uint16", photometric="RGB", **shape
    ) as target:
        target.write(np.moveaxis(image, 2, 0).astype(np.uint16) * 16)
    for name, kind in (("bright.dcm", "MONOCHROME2"), ("dark.dcm", "MONOCHROME1")):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(str(folder / name), {}, file_meta=meta, preamble=b"\0" * 128)
        data.Rows, data.Columns = SIZE
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, kind
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = (image[..., 0].astype(np.uint16) * 16).tobytes()
        pydicom.dcmwrite(folder / name, data, enforce_file_format=True)
    volume = np.zeros((*SIZE, 4), np.float32)
    volume[..., 1:3] = image[..., :2]
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / "brain.nii.gz")
    return [
        "phone.heic",
        "five-bands.tif",
        "deep-colors.tif",
        "bright.dcm",
        "dark.dcm",
        "brain.nii.gz#1",
        "brain.nii.gz#2",
    ]
