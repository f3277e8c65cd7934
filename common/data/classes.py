"""Class tables: names and colors of the classes, and which raw label value becomes which train id.

The tables that come with the project lie in ``common/data/tables``, one JSON file each, with their source.
"""

from __future__ import annotations

import difflib
import functools
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from common.errors import UserError, user_error

# Train id of pixels that are neither trained nor scored on, in every table
IGNORE = 255

_Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[_Byte, _Byte, _Byte]
_FOLDER = Path(__file__).with_name("tables")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", coerce_numbers_to_str=True))
class ClassTable:
    """Names and colors of the train ids 0..C-1, and how raw label values become train ids.

    ``remap`` maps a raw value to a train id or to ``ignore``; without it raw values are train ids. The raw
    value ``ignore`` itself is always ignored. Every other value is an error in the data, or with
    ``others_ignored``, where a map leaves values out on purpose, `IGNORE`. ``rare`` names the classes that a
    weighted loss favors, ``source`` where classes and map were published. Tables without ``colours`` get
    `distinct_colours`. Pydantic's ``ValidationError`` says what makes no sense; files and JSON values are read
    by `load_table` and `ClassTable.from_json`, which raise `UserError`.
    """

    name: str = "custom"
    names: tuple[str, ...] = ()
    colours: Annotated[tuple[Colour, ...], BeforeValidator(lambda given: () if given is None else given)] = ()
    remap: dict[_Byte, int] | None = None
    ignore: int = IGNORE
    others_ignored: StrictBool = False
    rare: Annotated[tuple[str, ...], Field(strict=False)] = ()
    source: str = field(default="", compare=False)

    @model_validator(mode="after")
    def _fits(self) -> ClassTable:
        count = len(self.names)
        if not 2 <= count <= 254:  # 255 is IGNORE, and one value stays free for a table's own
            raise ValueError(f"it has {count} classes; expected 2 to 254, list their names")
        if len(set(self.names)) != count:
            raise ValueError("it names a class twice; give every class a name of its own")
        if not self.colours:
            object.__setattr__(self, "colours", distinct_colours(count))
        if len(self.colours) != count:
            raise ValueError(
                f"it has {len(self.colours)} colours for {count} classes; give one (r, g, b) each"
            )
        if not count <= self.ignore <= 255:
            raise ValueError(f"it ignores the value {self.ignore}, which is a class or no byte; use {IGNORE}")
        strange = next((name for name in self.rare if name not in self.names), None)
        if strange is not None:
            raise ValueError(f"it calls {strange!r} rare, which is none of its classes; correct the name")
        for raw, train in (self.remap or {}).items():
            if not (train == self.ignore or 0 <= train < count):
                raise ValueError(
                    f"it maps the raw value {raw} to {train}; expected 0 to {count - 1} or {self.ignore} (ignore)"
                )
        return self

    @property
    def num_classes(self) -> int:
        """C, without the ignored value."""
        return len(self.names)

    def known(self) -> npt.NDArray[np.bool_]:
        """Return bool [256]: which raw values may stand in a label map of this table."""
        # an unknown value is an error in the data: guessing would score a wrong label silently
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
        """Return uint8 [256, 3], train id -> color; black for ids without a class."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        colours[: self.num_classes] = self.colours
        return colours

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` takes them back. The source stays in the table's own file."""
        data: dict[str, Any] = _adapter().dump_python(self, mode="json", exclude={"source"})
        if self.remap is not None:
            data["remap"] = {str(raw): self.remap[raw] for raw in sorted(self.remap)}
        return data

    @classmethod
    def from_json(cls, data: Any, where: str = "class table") -> ClassTable:
        """Build a table from JSON values; only names are needed. Raises `UserError` naming ``where``."""
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            keys = "names, colours ([r, g, b] each), remap ({raw: train id}), ignore, others_ignored, rare"
            raise user_error(error, f"{where} is no class table:", f"its keys are name, {keys}") from None


@functools.cache
def _adapter() -> TypeAdapter[ClassTable]:
    return TypeAdapter(ClassTable)


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return ``count`` colors that differ in hue, saturation and value (golden-angle walk)."""
    import colorsys

    colours = []
    for i in range(count):
        # steps of the golden angle: the next hue lies as far from all before as may be
        rgb = colorsys.hsv_to_rgb(
            (0.58 + i * 0.618034) % 1, (0.75, 0.5, 0.9)[i % 3], (0.9, 0.75, 0.55)[i // 3 % 3]
        )
        colours.append((round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)))
    return tuple(colours)


@functools.cache
def table_names() -> tuple[str, ...]:
    """Return the names of the tables that come with the project, in alphabetic order."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@functools.cache
def known_table(name: str) -> ClassTable | None:
    """Return a table that comes with the project, None for any other name."""
    if name not in table_names():
        return None
    return ClassTable.from_json(from_json((_FOLDER / f"{name}.json").read_bytes()), where=name)


def load_table(name_or_path: str | Path) -> ClassTable:
    """Return a table by its name (`table_names`), or read it from a JSON file.

    Raises `UserError` where the name is unknown or the file is no class table.
    """
    name = str(name_or_path)
    known = known_table(name)
    if known is not None:
        return known
    path = Path(name)
    if path.suffix != ".json" and not path.is_file():
        near = difflib.get_close_matches(name, table_names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"There is no class table {name!r}: {hint}expected {', '.join(table_names())}, or a JSON file "
            "with the keys names, colours, remap, ignore, others_ignored, rare."
        )
    try:
        data = from_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"The class table {name} cannot be read ({error.strerror or error}); give an existing JSON file."
        ) from None
    except ValueError as error:
        raise UserError(f"The class table {name} is no JSON ({error}); correct the file.") from None
    if isinstance(data, dict):
        data.setdefault("name", path.stem)
    return ClassTable.from_json(data, where=name)


def cluster_table(count: int) -> ClassTable:
    """Return a table of clusters without names of their own, 2 to 254; raises `UserError` for more.

    A network has an output for each of them.
    """
    if not 2 <= count <= 254:
        raise UserError(f"model.clusters is {count}; a network learns 2 to 254 clusters.")
    return ClassTable(name="clusters", names=tuple(f"cluster {index}" for index in range(count)))
