"""Which classes does a data set have, how are they drawn, and which raw label value is which class?"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data import benchmarks, driving
from common.errors import UserError

IGNORE = 255
Colour = tuple[int, int, int]
_KEYS = frozenset({"name", "names", "colours", "remap", "ignore", "others_ignored", "rare"})


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the train ids 0..C-1, and how raw label values become train ids.

    ``remap`` maps a raw value to a train id or to ``ignore``; without it raw values are train ids.
    The raw value ``ignore`` itself is always ignored. Every other value is an error in the data, for
    guessing would score a wrong label silently; where a map leaves values out on purpose,
    ``others_ignored`` makes them `IGNORE`. ``rare`` names the classes that a weighted loss favours.
    """

    name: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    remap: Mapping[int, int] | None = None
    ignore: int = IGNORE
    others_ignored: bool = False
    rare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"Class table {self.name!r}"
        if not 2 <= len(self.names) <= 254:
            raise UserError(f"{where} has {len(self.names)} classes; expected 2 to 254, list their names.")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"{where} names a class twice; give every class a name of its own.")
        if len(self.colours) != len(self.names):
            raise UserError(
                f"{where} has {len(self.colours)} colours for {len(self.names)} classes; "
                "give one (r, g, b) each."
            )
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.colours):
            raise UserError(f"{where} has a colour that is not three numbers from 0 to 255; correct it.")
        if not len(self.names) <= self.ignore <= 255:
            raise UserError(
                f"{where} ignores the value {self.ignore}, which is a class or no byte; use {IGNORE}."
            )
        strange = next((name for name in self.rare if name not in self.names), None)
        if strange is not None:
            raise UserError(
                f"{where} calls {strange!r} rare, which is none of its classes; correct the name."
            )
        for raw, train in (self.remap or {}).items():
            if not 0 <= raw <= 255 or not (train == self.ignore or 0 <= train < len(self.names)):
                raise UserError(
                    f"{where} maps the raw value {raw} to {train}; expected 0 to 255 to become "
                    f"0 to {len(self.names) - 1} or {self.ignore} (ignore)."
                )

    @property
    def num_classes(self) -> int:
        """C, without the ignored value."""
        return len(self.names)

    def known(self) -> npt.NDArray[np.bool_]:
        """Return bool [256]: which raw values may stand in a label map of this table."""
        allowed = np.full(256, self.others_ignored, dtype=np.bool_)
        allowed[list(range(self.num_classes)) if self.remap is None else sorted(self.remap)] = True
        allowed[self.ignore] = True
        return allowed

    def lut(self) -> npt.NDArray[np.uint8]:
        """Return uint8 [256], raw value -> train id; 255 for what is ignored or unknown (see `known`)."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        pairs = self.remap.items() if self.remap is not None else ((i, i) for i in range(self.num_classes))
        for raw, train in pairs:
            table[raw] = IGNORE if train == self.ignore else train
        return table

    def palette(self) -> npt.NDArray[np.uint8]:
        """Return uint8 [256, 3], train id -> colour; black for ids without a class."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: self.num_classes] = self.colours
        return colours

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` takes them back."""
        return {
            "name": self.name,
            "names": list(self.names),
            "colours": [list(colour) for colour in self.colours],
            "remap": None
            if self.remap is None
            else {str(raw): self.remap[raw] for raw in sorted(self.remap)},
            "ignore": self.ignore,
            "others_ignored": self.others_ignored,
            "rare": list(self.rare),
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "class table") -> ClassTable:
        """Build a table from JSON values; only names are needed. Raises `UserError` naming ``where``."""
        if not isinstance(data, dict) or not isinstance(data.get("names"), list):
            raise UserError(f"{where} is not a class table; expected an object with a list 'names'.")
        unknown = set(data) - _KEYS
        if unknown:
            raise UserError(
                f"{where} has the unknown key {min(unknown)!r}; expected {', '.join(sorted(_KEYS))}."
            )
        others_ignored = data.get("others_ignored", False)
        if not isinstance(others_ignored, bool):
            raise UserError(f"{where}: 'others_ignored' is {others_ignored!r}; expected true or false.")
        rare = data.get("rare", [])
        if not isinstance(rare, list):
            raise UserError(f"{where}: 'rare' is {rare!r}; expected a list of names of classes.")
        names = tuple(str(name) for name in data["names"])
        try:
            colours = data.get("colours")
            remap = data.get("remap")
            return cls(
                name=str(data.get("name", "custom")),
                names=names,
                colours=tuple((int(r), int(g), int(b)) for r, g, b in colours)
                if colours is not None
                else distinct_colours(len(names)),
                remap=None if remap is None else {int(raw): int(train) for raw, train in remap.items()},
                ignore=int(data.get("ignore", IGNORE)),
                others_ignored=others_ignored,
                rare=tuple(str(name) for name in rare),
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} cannot be read as a class table ({error}); expected colours as [r, g, b] "
                "and remap as {raw: train id}."
            ) from None


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """Return ``count`` colours that differ in hue, saturation and value (golden-angle walk)."""
    import colorsys

    colours = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(
            (0.58 + i * 0.618034) % 1, (0.75, 0.5, 0.9)[i % 3], (0.9, 0.75, 0.55)[i // 3 % 3]
        )
        colours.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return tuple(colours)


def _camvid() -> ClassTable:
    return ClassTable(
        name="camvid",
        names=(
            "Sky",
            "Building",
            "Pole",
            "Road",
            "Pavement",
            "Tree",
            "SignSymbol",
            "Fence",
            "Car",
            "Pedestrian",
            "Bicyclist",
        ),
        colours=(
            (128, 180, 235),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (230, 120, 20),
            (0, 128, 192),
        ),
        remap={**{i: i for i in range(11)}, 11: IGNORE},
        rare=("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist"),
    )


def _camvid_road() -> ClassTable:
    return ClassTable(
        name="camvid-road",
        names=("rest", "Road"),
        colours=((40, 60, 90), (240, 160, 40)),
        remap={**{i: int(i == 3) for i in range(11)}, 11: IGNORE},
    )


SYNTHETIC = ClassTable(
    name="synthetic",
    names=("sky", "building", "road", "pavement", "grass", "tree", "car", "person"),
    colours=(
        (110, 180, 240),
        (150, 80, 60),
        (110, 100, 125),
        (225, 170, 200),
        (160, 215, 80),
        (20, 110, 50),
        (30, 60, 200),
        (240, 70, 40),
    ),
    rare=("person",),
)

CRACKFOREST = ClassTable(name="crackforest", names=("road", "crack"), colours=((70, 75, 85), (250, 200, 40)))


def _cityscapes() -> ClassTable:
    raw = dict.fromkeys(range(7), IGNORE) | {value: value - 7 for value in range(7, 34)}
    names, colours = zip(*benchmarks.CITYSCAPES_27, strict=True)
    return ClassTable("cityscapes-27", names, colours, raw)


def _cocostuff(name: str, coarse: tuple[int, ...]) -> ClassTable:
    names = tuple(benchmarks.COCOSTUFF_27[i][0] for i in coarse)
    every = distinct_colours(len(benchmarks.COCOSTUFF_27))
    return ClassTable(
        name, names, tuple(every[i] for i in coarse), benchmarks.cocostuff_remap(coarse, IGNORE)
    )


# Raw: 0 impervious surface, 1 building, 2 low vegetation, 3 tree, 4 car, 5 clutter.
POTSDAM = ClassTable(
    name="potsdam-3",
    names=("road and car", "building and clutter", "vegetation"),
    colours=((235, 235, 235), (50, 70, 210), (60, 170, 70)),
    remap={0: 0, 4: 0, 1: 1, 5: 1, 2: 2, 3: 2},
)


def _driving(table: driving.DrivingTable) -> ClassTable:
    names, colours = zip(*table.classes, strict=True)
    raw = {value: table.raw.get(value, IGNORE) for value in range(table.highest + 1)}
    return ClassTable(table.name, names, colours, raw, rare=table.rare)


VOC = ClassTable("voc", benchmarks.VOC_21, tuple(benchmarks.voc_colour(i) for i in range(21)))

TABLES: dict[str, ClassTable] = {
    table.name: table
    for table in (
        SYNTHETIC,
        _camvid(),
        _camvid_road(),
        CRACKFOREST,
        _cityscapes(),
        _cocostuff("cocostuff-27", tuple(range(27))),
        _cocostuff("cocostuff-15", tuple(range(12, 27))),
        _cocostuff("cocostuff-3", (23, 22, 21)),
        POTSDAM,
        VOC,
        *map(_driving, driving.DRIVING),
    )
}


def load_table(name_or_path: str | Path) -> ClassTable:
    """Return a table by its registered name, or read it from a JSON file.

    Raises `UserError` where the name is unknown or the file is no class table.
    """
    name = str(name_or_path)
    if name in TABLES:
        return TABLES[name]
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        near = difflib.get_close_matches(name, TABLES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"There is no class table {name!r}: {hint}expected {', '.join(sorted(TABLES))}, or a JSON file "
            "with the keys names, colours, remap, ignore, others_ignored, rare."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"The class table {name} cannot be read ({error.strerror or error}); give an existing JSON file."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"The class table {name} is no JSON ({error}); correct the file.") from None
    if isinstance(data, dict):
        data.setdefault("name", path.stem)
    return ClassTable.from_json(data, where=name)
