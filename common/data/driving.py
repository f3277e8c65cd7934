"""Which classes do the driving-scene data sets have, and how do their raw label values become train ids?

Plain data; `common.data.classes` makes tables of it. The maps are those that the published works train and
score with: what they leave out of a data set's raw values is ignored there, and here. A value that the data set
does not have is no class left out but another kind of map (colours made grey, another version), so it is refused.
The names of the 19 classes and their colours are Cityscapes'; other sets of classes are made from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from common.data.benchmarks import CITYSCAPES_27

Colour = tuple[int, int, int]


class DrivingTable(NamedTuple):
    """Name of a class table, its classes in the order of their train ids, and raw value -> train id.

    ``highest`` is the largest raw value that the data set has; those up to it that ``raw`` lacks are ignored.
    """

    name: str
    classes: tuple[tuple[str, Colour], ...]
    raw: Mapping[int, int]
    highest: int
    rare: tuple[str, ...]


# Small things on which safety hangs; present in every table below, IDDA's 23 classes say 'pedestrian'.
_RARE = frozenset(
    (
        "pole",
        "traffic light",
        "traffic sign",
        "person",
        "pedestrian",
        "rider",
        "motorcycle",
        "bicycle",
    )
)
_COLOURS: dict[str, Colour] = {**dict(CITYSCAPES_27), "vehicle": (0, 0, 142)}

_NAMES_19 = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
_NAMES_16 = (*_NAMES_19[:13], "vehicle", "motorcycle", "bicycle")
_NAMES_13 = (
    "road",
    "sidewalk",
    "building",
    "traffic light",
    "traffic sign",
    "vegetation",
    "sky",
    "person",
    "rider",
    "car",
    "bus",
    "motorcycle",
    "bicycle",
)

# The raw values of IDDA 1 to 23; 0 is unlabelled.
IDDA_23: tuple[tuple[str, Colour], ...] = (
    ("building", (70, 70, 70)),
    ("fence", (190, 153, 153)),
    ("other", (72, 0, 90)),
    ("pedestrian", (220, 20, 60)),
    ("pole", (153, 153, 153)),
    ("road line", (157, 234, 50)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("vegetation", (107, 142, 35)),
    ("vehicle", (0, 0, 142)),
    ("wall", (102, 102, 156)),
    ("traffic sign", (220, 220, 0)),
    ("traffic light", (250, 170, 30)),
    ("guard rail", (180, 165, 180)),
    ("dynamic", (111, 74, 0)),
    ("bicycle", (119, 11, 32)),
    ("motorcycle", (0, 0, 230)),
    ("rider", (255, 0, 0)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("rail track", (230, 150, 140)),
    ("ground", (81, 0, 81)),
    ("static", (160, 150, 20)),
)

# Raw values of GTA5, Cityscapes and CrossCity are Cityscapes' label ids; position: train id.
_IDS_19 = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_IDS_13 = (7, 8, 11, 19, 20, 21, 23, 24, 25, 26, 28, 32, 33)
_CITYSCAPES_19 = {raw: train for train, raw in enumerate(_IDS_19)}
_CITYSCAPES_13 = {raw: train for train, raw in enumerate(_IDS_13)}

# To IDDA's 16 classes: the first 13 are the same. The bonnet of one's own car, trucks and buses are vehicles,
# groups of poles are poles; caravans, trailers and trains stay out.
_GTA5_16 = {
    **{raw: train for train, raw in enumerate(_IDS_19[:13])},
    **dict.fromkeys((1, 26, 27, 28), 13),
    18: 5,
    32: 14,
    33: 15,
}

# Train id -> raw values of IDDA: road lines belong to the road.
_IDDA_16 = {
    0: (6, 7),
    1: (8,),
    2: (1,),
    3: (11,),
    4: (2,),
    5: (5,),
    6: (13,),
    7: (12,),
    8: (9,),
    9: (19,),
    10: (20,),
    11: (4,),
    12: (18,),
    13: (10,),
    14: (17,),
    15: (16,),
}

# Train id (of the 19) -> raw values of Mapillary Vistas 1.2, whose 66 ids are 0 to 65.
_MAPILLARY = {
    0: (13, 14, 24, 43),
    1: (2, 7, 9, 11, 15),
    2: (17,),
    3: (6,),
    4: (3,),
    5: (44, 45, 46, 47),
    6: (48,),
    7: (50,),
    8: (30,),
    9: (26, 29),
    10: (27,),
    11: (19,),
    12: (20, 21, 22),
    13: (55,),
    14: (61,),
    15: (54,),
    16: (58,),
    17: (57,),
    18: (52,),
}


def _coloured(names: tuple[str, ...]) -> tuple[tuple[str, Colour], ...]:
    return tuple((name, _COLOURS[name]) for name in names)


def _inverted(groups: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    return {raw: train for train, raws in groups.items() for raw in raws}


def _table(
    name: str, classes: tuple[tuple[str, Colour], ...], raw: Mapping[int, int], highest: int
) -> DrivingTable:
    return DrivingTable(name, classes, raw, highest, tuple(label for label, _ in classes if label in _RARE))


# Cityscapes' ids end with 33, for its licence plates are -1; in GTA5 these are 34. CrossCity takes part in both
# maps, so that it may have either. IDDA has 23 classes and 0, Mapillary Vistas 1.2 has 66 ids; version 2.0 has more.
DRIVING: tuple[DrivingTable, ...] = (
    _table("gta5-19", _coloured(_NAMES_19), _CITYSCAPES_19, 34),
    _table("gta5-16", _coloured(_NAMES_16), _GTA5_16, 34),
    _table("gta5-13", _coloured(_NAMES_13), _CITYSCAPES_13, 34),
    _table("idda-16", _coloured(_NAMES_16), _inverted(_IDDA_16), 23),
    _table("idda-23", IDDA_23, {raw: raw - 1 for raw in range(1, 24)}, 23),
    _table("cityscapes-19", _coloured(_NAMES_19), _CITYSCAPES_19, 33),
    _table("crosscity-13", _coloured(_NAMES_13), _CITYSCAPES_13, 34),
    _table("mapillary-19", _coloured(_NAMES_19), _inverted(_MAPILLARY), 65),
)
