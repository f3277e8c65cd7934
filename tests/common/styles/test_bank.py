"""Does a bank keep the sites' styles, refuse those of another kind, and draw fairly?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.errors import UserError
from common.seeds import torch_generator
from common.settings.network import Style
from common.styles.bank import StyleBank
from common.styles.style import apply_style, extract_style


def settings(**given: object) -> Style:
    return Style.model_validate({"transfer": "fourier", "height": 16, "width": 24, **given})


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (16, 24, 3), dtype=np.uint8)


def bank(chosen: Style | None = None, sites: int = 3) -> StyleBank:
    chosen = chosen or settings()
    return StyleBank.of(chosen, {f"site-{i}": extract_style(picture(i), chosen) for i in range(sites)})


@pytest.mark.parametrize("transfer", ["fourier", "lab", "spectra"])
def test_what_is_saved_comes_back(tmp_path: Path, transfer: str) -> None:
    chosen = settings(transfer=transfer)
    kept = bank(chosen)
    kept.save(tmp_path / "styles.safetensors")
    again = StyleBank.load(tmp_path / "styles.safetensors", chosen)
    assert (again.kind, again.size, again.window) == (kept.kind, kept.size, kept.window)
    assert list(again.styles) == ["site-0", "site-1", "site-2"]
    assert all(np.array_equal(again.styles[site], kept.styles[site]) for site in kept.styles)
    described = json.loads((tmp_path / "styles.json").read_text())
    assert described["sites"] == list(kept.styles)
    assert described["kind"] == transfer


def test_a_bank_that_is_replaced_never_lies_there_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "styles.safetensors"
    old = bank()
    old.save(path)

    def full(*_: object) -> None:
        raise UserError("Cannot write: no space left on device")

    monkeypatch.setattr("common.styles.bank.atomic_write_bytes", full)
    with pytest.raises(UserError, match="no space"):
        bank(sites=2).save(path)
    assert list(StyleBank.load(path, settings()).styles) == list(old.styles)  # though the JSON is newer


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"height": 32}, "3 x 3 window at 16 x 24 pixels; the settings ask for .* at 32 x 24 pixels"),
        ({"side": 5}, "5 x 5 window"),
        ({"transfer": "spectra"}, "'spectra' styles"),
        ({"transfer": "lab"}, "ask for 'lab' styles;"),
    ],
)
def test_a_bank_of_another_size_window_or_kind_is_refused(
    tmp_path: Path, other: dict[str, object], words: str
) -> None:
    bank().save(tmp_path / "styles.safetensors")
    with pytest.raises(UserError, match=words):
        StyleBank.load(tmp_path / "styles.safetensors", settings(**other))
    with pytest.raises(UserError, match=words):
        bank().restyle(settings(**other))


def test_the_same_window_given_in_another_way_is_the_same() -> None:
    bank().check(settings(side=0, half_size=1))
    bank().check(settings(side=0, fraction=0.07))


def test_files_that_are_no_bank_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "styles.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        StyleBank.load(path, settings())
    path.write_bytes(b"\x08")
    with pytest.raises(UserError, match="cannot be read"):
        StyleBank.load(path, settings())
    save_file({"style/site-0": np.zeros((3, 3, 3), np.float32)}, path)
    with pytest.raises(UserError, match="not a style bank"):
        StyleBank.load(path, settings())
    for header in (
        "{}",
        "[]",
        '{"format": 9}',
        '{"format": 1, "kind": "fourier", "size": 3, "window": [3, 3]}',
    ):
        save_file({"style/site-0": np.zeros((3, 3, 3), np.float32)}, path, metadata={"style-bank": header})
        with pytest.raises(UserError, match="not a style bank"):
            StyleBank.load(path, settings())


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "styles.safetensors"
    bank().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot be read"):
        StyleBank.load(path, settings())


def test_a_style_that_does_not_fit_names_its_site() -> None:
    styles = {"a": np.ones((3, 3, 3), np.float32), "b": np.ones((3, 5, 5), np.float32)}
    with pytest.raises(UserError, match=r"^Site b: .*expected float32 of shape \[3, 3, 3\]"):
        StyleBank.of(settings(), styles)


def test_every_site_is_drawn_equally_often_and_by_the_generator_alone() -> None:
    kept = bank(sites=4)
    generator = torch_generator(0, "draw")
    drawn = Counter(kept.draw(generator)[0] for _ in range(4000))
    assert set(drawn) == set(kept.styles)
    assert all(abs(count - 1000) < 150 for count in drawn.values())  # 5 deviations
    first = [kept.draw(torch_generator(1, i))[0] for i in range(20)]
    assert first == [kept.draw(torch_generator(1, i))[0] for i in range(20)]
    site, style = kept.draw(generator)
    assert style is kept.styles[site]


def test_restyled_pictures_are_in_the_style_of_some_site() -> None:
    chosen, kept, image = settings(), bank(), picture(9)
    change = kept.restyle(chosen)
    possible = [apply_style(image, style, chosen) for style in kept.styles.values()]
    seen = set()
    for index in range(30):
        styled = change(image, torch_generator(0, index))
        seen.add(next(i for i, one in enumerate(possible) if np.array_equal(one, styled)))
    assert seen == {0, 1, 2}


def test_a_share_of_pictures_stays_plain() -> None:
    image = picture(9)
    change = bank().restyle(settings(), plain=0.25)
    plain = sum(np.array_equal(change(image, torch_generator(0, i)), image) for i in range(400))
    assert abs(plain - 100) < 45  # 5 deviations
    always = bank().restyle(settings(), plain=1.0)
    assert all(np.array_equal(always(image, torch_generator(0, i)), image) for i in range(20))


def test_an_empty_bank_gives_no_style() -> None:
    empty = StyleBank.of(settings(), {})
    with pytest.raises(UserError, match="empty"):
        empty.draw(torch_generator(0))
    with pytest.raises(UserError, match="empty"):
        empty.restyle(settings())
