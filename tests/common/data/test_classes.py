"""Do class tables translate raw label values as they say, and refuse what makes no sense?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.classes import TABLES, ClassTable, distinct_colours, load_table
from common.errors import UserError


def test_camvid_ignores_its_unlabelled_value_and_keeps_the_rest() -> None:
    lut = load_table("camvid").lut()
    assert lut[:12].tolist() == [*range(11), 255]
    assert load_table("camvid").known()[:13].tolist() == [True] * 12 + [False]


def test_binary_camvid_is_road_against_all_else() -> None:
    table = load_table("camvid-road")
    assert table.lut()[:12].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255]
    assert table.names == ("rest", "Road")


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_survives_json_and_tells_its_classes_apart_by_colour(name: str) -> None:
    table = TABLES[name]
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
        ("[]", "is not a class table"),
        ('{"names": ["one"]}', "has 1 classes; expected 2 to 254"),
        ('{"names": ["a", "a"]}', "names a class twice"),
        ('{"names": ["a", "b"], "color": []}', "unknown key 'color'"),
        ('{"names": ["a", "b"], "colours": [[0, 0, 0]]}', "1 colours for 2 classes"),
        ('{"names": ["a", "b"], "colours": [[0, 0, 0], [0, 0, 256]]}', "three numbers from 0 to 255"),
        ('{"names": ["a", "b"], "colours": 3}', "cannot be read as a class table"),
        ('{"names": ["a", "b"], "remap": {"0": 2}}', "maps the raw value 0 to 2"),
        ('{"names": ["a", "b"], "ignore": 1}', "ignores the value 1, which is a class"),
        ('{"names": ["a", "b"], "rare": ["c"]}', "calls 'c' rare, which is none of its classes"),
        ('{"names": ["a", "b"], "rare": "ab"}', "'rare' is 'ab'; expected a list of names of classes"),
        ('{"names": ["a", "b"], "rare": {"a": 1}}', "expected a list of names of classes"),
        ('{"names": ["a", "b"], "rare": null}', "'rare' is None; expected a list of names of classes"),
        (
            '{"names": ["a", "b"], "others_ignored": "yes"}',
            "'others_ignored' is 'yes'; expected true or false",
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
