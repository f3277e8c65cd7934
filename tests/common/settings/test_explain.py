"""Is what a user reads about a setting what the program checks?"""

from __future__ import annotations

import tomllib

import pytest

from common.settings.load import load_config
from common.settings.schema import RunConfig, explained_toml, explanations
from common.settings.section import flatten
from server.__main__ import server_main as main


def test_every_key_is_explained_by_its_own_field() -> None:
    found = explanations()
    assert set(found) == set(RunConfig().to_flat())
    assert not [key for key, meaning in found.items() if not meaning or meaning.startswith("(")]
    assert found["network.output-stride"] == "pixels per cell of the deepest features (8, 16, 32)"
    assert found["sgd.lr"] == "learning rate (> 0)"
    assert found["transforms.rotation"].endswith("(>= 0, <= 180)")
    assert found["teacher.update"].endswith('("never", "rounds", "mean", "student")')


def test_explained_settings_are_the_settings() -> None:
    config = load_config({"task": "supervised", "network.rates": "6,12,18"})
    assert flatten(tomllib.loads(explained_toml(config))) == config.to_flat()
    assert (
        '# dilation of the three atrous convolutions of ASPP\nnetwork.rates = "6,12,18"\n'
        in explained_toml(config)
    )


def test_the_command_explains_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["server", "settings", "--set", "rounds=3"]
    said = []
    for more in ([], ["--explain"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        main()
        said.append(capsys.readouterr().out)
    keys = [line for line in said[1].splitlines() if line[:2] == "# " and line[:3] != "#  "]
    assert "#" not in said[0] and len(keys) == len(RunConfig().to_flat())
    assert "\n#   lloyd: exact spherical k-means" in said[1]  # names that are registered, each with a line
    assert tomllib.loads(said[0]) == tomllib.loads(said[1])
