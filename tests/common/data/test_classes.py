"""Class tables: raw label values become train ids as published, and what makes no sense is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from common.data.classes import ClassTable, distinct_colours, load_table, table_names
from common.errors import UserError


def test_camvid_ignores_its_unlabelled_value_and_keeps_the_rest() -> None:
    lut = load_table("camvid").lut()
    assert lut[:12].tolist() == [*range(11), 255]
    assert load_table("camvid").known()[:13].tolist() == [True] * 12 + [False]


def test_binary_camvid_is_road_against_all_else() -> None:
    table = load_table("camvid-road")
    assert table.lut()[:12].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255]
    assert table.names == ("rest", "Road")


@pytest.mark.parametrize("name", table_names())
def test_every_table_survives_json_and_tells_its_classes_apart_by_colour(name: str) -> None:
    table = load_table(name)
    assert ClassTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert len(set(table.colours)) == table.num_classes
    assert set(table.lut().tolist()) <= {*range(table.num_classes), 255}
    assert set(range(table.num_classes)) <= set(table.lut().tolist()), "a class that no raw value reaches"


def test_an_ignore_value_of_its_own_becomes_255() -> None:
    table = ClassTable("t", ("a", "b"), ((0, 0, 0), (9, 9, 9)), ignore=2)
    assert table.lut()[[0, 1, 2, 3]].tolist() == [0, 1, 255, 255]
    assert table.known()[[0, 1, 2, 3]].tolist() == [True, True, True, False]


def test_a_json_file_names_classes_and_may_leave_colours_out(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    path.write_text('{"names": ["good", "scratch"], "remap": {"0": 0, "7": 1}}')
    table = load_table(path)
    assert (table.name, table.num_classes, int(table.lut()[7])) == ("parts", 2, 1)
    assert len(set(table.colours)) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON"),
        pytest.param("[" * 100_000, "is no JSON", id="nested too deeply"),
        ("[]", "is no class table"),
        ('{"name": "x"}', "has 0 classes; expected 2 to 254"),
        ('{"names": ["one"]}', "has 1 classes; expected 2 to 254"),
        ('{"names": ["a", "a"]}', "names a class twice"),
        ('{"names": ["a", "b"], "color": []}', "'color' is an unknown key"),
        ('{"names": ["a", "b"], "colours": [[0, 0, 0]]}', "1 colours for 2 classes"),
        ('{"names": ["a", "b"], "colours": [[0, 0, 0], [0, 0, 256]]}', "'colours.1.2' is 256"),
        ('{"names": ["a", "b"], "colours": 3}', "'colours' is 3"),
        ('{"names": ["a", "b"], "remap": {"0": 2}}', "maps the raw value 0 to 2"),
        ('{"names": ["a", "b"], "ignore": 1}', "ignores the value 1, which is a class"),
        ('{"names": ["a", "b"], "rare": ["c"]}', "calls 'c' rare, which is none of its classes"),
        ('{"names": ["a", "b"], "rare": "ab"}', "'rare' is 'ab'"),
        ('{"names": ["a", "b"], "rare": {"a": 1}}', "'rare' is {'a': 1}"),
        ('{"names": ["a", "b"], "rare": null}', "'rare' is None"),
        (
            '{"names": ["a", "b"], "others_ignored": "yes"}',
            "'others_ignored' is 'yes': .* boolean",
        ),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_table(path)


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(UserError, match="no class table 'camvd': did you mean 'camvid'"):
        load_table("camvd")


def test_distinct_colours_are_distinct() -> None:
    assert len(set(distinct_colours(60))) == 60


# Digests of each table's JSON as version 0.1.0 wrote it into checkpoints, from its Python tables.
WRITTEN_BY_0_1_0 = {
    "camvid": "6cb3d5d5c22bc065",
    "camvid-road": "f75ac8e7ccc2771e",
    "cityscapes-19": "5837269bcd0b5c33",
    "cityscapes-27": "f76eec10dc39ef64",
    "cocostuff-15": "5b538835c6ae352d",
    "cocostuff-27": "8ae67ad5fe9c45aa",
    "cocostuff-3": "df66a6fd64600027",
    "crackforest": "b069b4f4db63475d",
    "crosscity-13": "1060dc41ca9aecf2",
    "gta5-13": "f6c5c6e737ce8072",
    "gta5-16": "5bbef2126baec7ba",
    "gta5-19": "ff4c275f8704f87f",
    "idda-16": "b57cc92e5e607d79",
    "idda-23": "232bcf32d2610c2a",
    "mapillary-19": "439ebe6a5a9bae64",
    "potsdam-3": "b24be98f18048e71",
    "synthetic": "c4ab3682c2e7b26d",
    "voc": "c52540a196baa043",
}


def test_the_json_of_every_table_is_that_of_the_first_version_byte_for_byte() -> None:
    found = {
        name: hashlib.sha256(json.dumps(load_table(name).to_json()).encode()).hexdigest()
        for name in table_names()
    }
    assert {name: found[name][:16] for name in WRITTEN_BY_0_1_0} == WRITTEN_BY_0_1_0


def test_every_table_cites_its_source() -> None:
    for name in table_names():
        assert load_table(name).source and load_table(name).name == name
