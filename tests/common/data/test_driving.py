"""Do the driving-scene tables translate every raw value exactly as the published maps do?"""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.data.classes import ClassTable, load_table, table_names

# Written down anew from the published maps, in their own form: raw value -> train id.
_GTA5_19 = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12},
    **{26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
_GTA5_16 = {
    **{1: 13, 7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 18: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11},
    **{25: 12, 26: 13, 27: 13, 28: 13, 32: 14, 33: 15},
}
_GTA5_13 = {7: 0, 8: 1, 11: 2, 19: 3, 20: 4, 21: 5, 23: 6, 24: 7, 25: 8, 26: 9, 28: 10, 32: 11, 33: 12}
_IDDA_16 = dict(
    enumerate([255, 2, 4, 255, 11, 5, 0, 0, 1, 8, 13, 3, 7, 6, 255, 255, 15, 14, 12, 9, 10, 255, 255, 255])
)
_IDDA_23 = {0: 255, **{raw: raw - 1 for raw in range(1, 24)}}
_MAPILLARY = {
    **{2: 1, 3: 4, 6: 3, 7: 1, 9: 1, 11: 1, 13: 0, 14: 0, 15: 1, 17: 2, 19: 11, 20: 12, 21: 12, 22: 12},
    **{24: 0, 26: 9, 27: 10, 29: 9, 30: 8, 43: 0, 44: 5, 45: 5, 46: 5, 47: 5, 48: 6, 50: 7, 52: 18},
    **{54: 15, 55: 13, 57: 17, 58: 16, 61: 14},
}
# Number of classes, map, highest raw value that the data set has.
PUBLISHED = {
    "gta5-19": (19, _GTA5_19, 34),
    "gta5-16": (16, _GTA5_16, 34),
    "gta5-13": (13, _GTA5_13, 34),
    "idda-16": (16, _IDDA_16, 23),
    "idda-23": (23, _IDDA_23, 23),
    "cityscapes-19": (19, _GTA5_19, 33),
    "crosscity-13": (13, _GTA5_13, 34),
    "mapillary-19": (19, _MAPILLARY, 65),
}


def test_every_driving_table_has_a_published_map() -> None:
    driving = {
        n for n in table_names() if n.startswith(("gta5", "idda", "crosscity", "mapillary", "cityscapes-19"))
    }
    assert driving == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_256_raw_values_become_the_published_train_ids(name: str) -> None:
    classes, published, _ = PUBLISHED[name]
    table = load_table(name)
    assert table.num_classes == classes
    assert table.lut().tolist() == [published.get(raw, 255) for raw in range(256)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_that_a_map_leaves_out_are_ignored_and_those_the_data_set_lacks_are_unknown(name: str) -> None:
    highest = PUBLISHED[name][2]
    assert load_table(name).known().tolist() == [raw <= highest or raw == 255 for raw in range(256)]


def test_other_tables_refuse_other_values() -> None:
    assert not load_table("camvid").known()[12]
    assert not load_table("cityscapes-27").known()[34]


@pytest.mark.parametrize(
    ("table", "raw", "name"),
    [
        ("gta5-16", 18, "pole"),
        ("gta5-16", 1, "vehicle"),
        ("gta5-13", 28, "bus"),
        ("gta5-19", 31, "train"),
        ("idda-16", 6, "road"),
        ("idda-16", 18, "rider"),
        ("idda-23", 1, "building"),
        ("idda-23", 23, "static"),
        ("cityscapes-19", 33, "bicycle"),
        ("crosscity-13", 19, "traffic light"),
        ("mapillary-19", 61, "truck"),
        ("mapillary-19", 50, "traffic sign"),
    ],
)
def test_train_ids_have_the_right_names(table: str, raw: int, name: str) -> None:
    chosen = load_table(table)
    assert chosen.names[int(chosen.lut()[raw])] == name


def test_the_palette_of_16_classes_is_the_published_one() -> None:
    palette = load_table("idda-16").palette()
    assert palette[:16].tolist() == [
        [128, 64, 128],
        [244, 35, 232],
        [70, 70, 70],
        [102, 102, 156],
        [190, 153, 153],
        [153, 153, 153],
        [250, 170, 30],
        [220, 220, 0],
        [107, 142, 35],
        [152, 251, 152],
        [70, 130, 180],
        [220, 20, 60],
        [255, 0, 0],
        [0, 0, 142],
        [0, 0, 230],
        [119, 11, 32],
    ]
    assert not np.any(palette[255])


def test_rare_classes_are_the_small_ones() -> None:
    small = {"pole", "traffic light", "traffic sign", "person", "rider", "motorcycle", "bicycle"}
    for name in ("gta5-19", "gta5-16", "idda-16", "cityscapes-19", "mapillary-19"):
        assert set(load_table(name).rare) == small
    assert set(load_table("gta5-13").rare) == set(load_table("crosscity-13").rare) == small - {"pole"}
    assert set(load_table("idda-23").rare) == small - {"person"} | {"pedestrian"}
    assert load_table("camvid").rare == ("Pole", "SignSymbol", "Fence", "Pedestrian", "Bicyclist")


def test_tables_written_before_these_notes_existed_are_still_read() -> None:
    data = json.loads(json.dumps(load_table("camvid").to_json()))
    del data["others_ignored"], data["rare"]
    old = ClassTable.from_json(data)
    assert (
        not old.others_ignored
        and old.rare == ()
        and old.lut().tolist() == load_table("camvid").lut().tolist()
    )
