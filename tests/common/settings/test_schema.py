"""Are settings merged, checked and named as users expect?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from common.losses.correspondence import CorrespondenceSettings
from common.settings.load import (
    PRESETS,
    default_flat,
    from_record,
    from_wire,
    load_config,
    parse_assignments,
    read_recipe,
    to_wire,
    unflatten,
)
from common.settings.schema import RunConfig
from common.settings.section import flatten
from server.tasks.base import load_settings
from tests.conftest import ROOT


def test_flat_and_nested_layers_mean_the_same() -> None:
    assert load_config({"local.steps": 5}) == load_config({"local": {"steps": 5}})


def test_flatten_is_undone_by_unflatten() -> None:
    flat = RunConfig().to_flat()
    assert flatten(unflatten(flat)) == flat


def test_later_layers_win_over_earlier_ones_and_over_the_preset() -> None:
    config = load_config({"preset": "fuss-ref", "local.neighbours": 5}, {"local.neighbours": 6})
    assert config.local.neighbours == 6
    assert config.centroids.merge == "fedcc-maximin"


def test_what_pyproject_lists_leaves_the_choice_to_the_preset() -> None:
    listed = default_flat()
    for name, preset in PRESETS.items():
        config = load_config(listed, {"preset": name}).to_flat()
        assert {key: config[key] for key in preset} == preset


def test_the_published_preset_keeps_what_is_odd_in_the_method() -> None:
    published, clean = (load_config({"preset": name}) for name in ("fuss-ref", "fuss-clean"))
    model = published.model
    draws = [config.loss.own(CorrespondenceSettings).negative_draw for config in (published, clean)]
    assert (model.height, model.width, model.resize, model.crop) == (224, 224, "nearest", "center")
    assert published.local.neighbour_dropout == model.dropout == 0.1
    assert (draws[0], published.local.prox_parameters) == (
        "published",
        "nonlinear",
    )
    assert clean.model.resize == "bilinear" and clean.local.neighbour_dropout == 0
    assert (draws[1], clean.local.prox_parameters) == (
        "derangement",
        "all",
    )


def test_presets_name_existing_keys_only() -> None:
    known = RunConfig().to_flat()
    assert all(key in known for preset in PRESETS.values() for key in preset)


def test_toml_round_trip(tmp_path: Path) -> None:
    config = load_config({"preset": "fuss-ref", "seed": 7, "aggregation.tau": 1e-5, "run-dir": 'a "b" \\ ä'})
    (tmp_path / "r.toml").write_text(config.to_toml(), encoding="utf-8")
    assert load_config(read_recipe(tmp_path / "r.toml")) == config


def test_json_round_trip() -> None:
    config = load_config({"preset": "fuss-clean", "seed": 7})
    assert from_record(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"local.step": 1}, ["'local.step'", "did you mean 'local.steps'"]),
        ({"local.steps": "many"}, ["'local.steps'", "'many'"]),
        ({"model.clusters": 1}, ["'model.clusters'", "1", "greater than or equal to 2"]),
        ({"preset": "best"}, ["'best'", "fuss-ref"]),
        ({"model.stages": "13;17"}, ["'model.stages'", "13,17"]),
        ({"local.lr": float("nan")}, ["'local.lr'", "finite"]),
        ({"sites.per-round": 2, "sites.minimum": 3}, ["sites.minimum is 3", "sites.per-round is 2"]),
        ({"name": "../up"}, ["'name'", "pattern"]),
        ({"preset": "fuss-ref", "loss.negative-weight": 0}, ["negative-draw", "set it to 'derangement'"]),
        ({"preset": "fuss-ref", "loss.inter-weight": 0}, ["local.neighbour-dropout is 0.1", "set it to 0"]),
        (
            {"preset": "fuss-ref", "loss.augmentation-weight": 1},
            ["loss.augmentation-weight is 1", "cache.views is 0"],
        ),
        ({"local.neighbour-dropout": 0.2}, ["local.neighbour-dropout is 0.2", "'spectral'"]),
        (
            {"preset": "fuss-ref", "local.prox-mu": 1, "model.nonlinear": False},
            ["local.prox-parameters is 'nonlinear'", "set it to 'all'"],
        ),
    ],
)
def test_bad_settings_are_refused_with_key_and_value(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_travel_as_differences_to_the_preset(preset: str) -> None:
    config = load_config({"preset": preset, "seed": 7, "local.steps": 3})
    assert from_wire(to_wire(config)) == config
    assert len(to_wire(config)) < 100


def test_assignments_are_toml_scalars_or_words() -> None:
    found = parse_assignments(["a=1", "b=true", "c=x y", 'd="0"', "e=1e-3"])
    assert found == {"a": 1, "b": True, "c": "x y", "d": "0", "e": 1e-3}
    with pytest.raises(UserError, match="key=value"):
        parse_assignments(["steps"])


def test_a_missing_recipe_names_those_that_exist() -> None:
    with pytest.raises(UserError, match="camvid-default"):
        read_recipe(ROOT / "recipes" / "camvid.toml")


def test_a_broken_recipe_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("rounds = = 3")
    with pytest.raises(UserError, match="not valid TOML"):
        read_recipe(recipe)


def test_a_recipe_stands_on_its_base_and_wins(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\nrounds = 4\n[local]\nsteps = 30\nbatch = 8\n')
    (tmp_path / "b.toml").write_text('base = "a"\nname = "b"\n[local]\nsteps = 7\n')
    (tmp_path / "c.toml").write_text('base = "b"\nname = "c"\nlocal.batch = 2\n')
    found = read_recipe(tmp_path / "c.toml")
    assert found == {"name": "c", "rounds": 4, "local.steps": 7, "local.batch": 2}


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ('"b"', ["is its own base", "a on b on a"]),
        ('"gone"', ["gone.toml does not exist", "holds: a, b"]),
        ('"../b"', ["'../b'", "the name of a recipe beside it"]),
        ("3", ["has the base 3"]),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, base: str, words: list[str]) -> None:
    (tmp_path / "a.toml").write_text(f"base = {base}\n")
    (tmp_path / "b.toml").write_text('base = "a"\n')
    with pytest.raises(UserError) as caught:
        read_recipe(tmp_path / "a.toml")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_old_keys_say_what_they_said() -> None:
    moved = load_config(
        {"preset": "fuss-ref", "loss.intra-shift": 0.3, "loss.samples": 7, "clusters.starts": 10}
    )
    flat = moved.to_flat()
    assert flat["loss.correspondence.intra-shift"] == 0.3
    assert flat["loss.correspondence.samples"] == flat["loss.smoothness.samples"] == 7
    with pytest.raises(UserError, match=r"'clusters\.starts' is 3 .*leave it out"):
        load_config({"clusters.starts": 3})
    assert from_record({"loss": {"spectral-ridge": 0.5}}).to_flat()["loss.spectral.ridge"] == 0.5


def test_weights_are_a_file_that_is_there_or_what_stands_last(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    given = f"{file},pretrained"
    assert load_config({"model.weights": given}).model.weights == "pretrained"
    file.touch()
    assert load_config({"model.weights": given}).model.weights == str(file)
    comma = tmp_path / "a,b.safetensors"
    comma.touch()
    assert load_config({"model.weights": str(comma)}).model.weights == str(comma)
    assert load_config({"model.weights": str(tmp_path / "none")}).model.weights == str(tmp_path / "none")


def test_a_recipe_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe("label-free") == read_recipe(ROOT / "recipes" / "label-free.toml")
    (tmp_path / "label-free").write_text("rounds = 3\n")
    assert read_recipe("label-free") == {"rounds": 3}  # a file of that name comes first
    with pytest.raises(UserError, match=r"label-fre\.toml does not exist.* label-free"):
        read_recipe("label-fre")
