"""Do a column, a regular expression and a folder level name the domain of every image, or say why not?"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.data.manifest import Entry
from common.errors import UserError
from partitions.domains import from_csv, from_level, from_regex

ENTRIES = [Entry("camera1/mon/001.jpg"), Entry("camera2/tue/002.jpg")]


def _names(entries: list[Entry]) -> list[str | None]:
    return [entry.domain for entry in entries]


def test_regular_expression() -> None:
    assert _names(from_regex(ENTRIES, r"camera(\d)")) == ["1", "2"]
    assert _names(from_regex(ENTRIES, r"mon|tue")) == ["mon", "tue"]
    with pytest.raises(UserError, match=r"finds no domain in 'camera2/tue/002.jpg'"):
        from_regex(ENTRIES, "mon")
    with pytest.raises(UserError, match="is no regular expression"):
        from_regex(ENTRIES, "(")


def test_folder_level() -> None:
    assert _names(from_level(ENTRIES, 1)) == ["camera1", "camera2"]
    assert _names(from_level(ENTRIES, 2)) == ["mon", "tue"]
    for level in (0, 3):
        with pytest.raises(UserError, match=f"--domain-level is {level} but .* lies 2 folders deep"):
            from_level(ENTRIES, level)


@pytest.mark.parametrize("column", ["image", "filename", "name"])
@pytest.mark.parametrize("value", ["{path}", "{name}", "{stem}"])
def test_csv_by_path_name_or_stem(tmp_path: Path, column: str, value: str) -> None:
    rows = [
        value.format(path=e.image, name=Path(e.image).name, stem=Path(e.image).stem) + f",place {i}"
        for i, e in enumerate(ENTRIES)
    ]
    (tmp_path / "d.csv").write_text("\n".join([f"{column},place", *rows]))
    assert _names(from_csv(ENTRIES, tmp_path / "d.csv", "place")) == ["place 0", "place 1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,site\n001,a\n002,b", "--domain-column 'domain' is not in .*; expected one of name, site"),
        ("id,domain\n001,a\n002,b", "has no column that names the image"),
        ("name,domain\n001,a", "has no row for the image 'camera2/tue/002.jpg'"),
        ("name,domain\n001,a\n001,b\n002,b", "gives '001' the domains a, b"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(UserError, match=sentence):
        from_csv(ENTRIES, tmp_path / "d.csv", "domain")
    with pytest.raises(UserError, match="cannot be read"):
        from_csv(ENTRIES, tmp_path / "gone.csv", "domain")
