"""Do the campaigns compare what they say, and can they be stopped and started again?"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.settings.load import load_config, read_recipe
from common.settings.schema import RunConfig
from partitions.__main__ import _line as partitions_line
from partitions.__main__ import partitions_main as partition
from server.run_dir import sole_writer
from tests.conftest import ROOT
from tests.support.commands import understood
from tests.support.replicas import put_label, put_picture

sys.path.insert(0, str(ROOT / "benchmarks"))

import campaign
import tables

RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FAMILIES = {path.stem.split("-")[0] for path in RECIPES}


def settings(name: str) -> RunConfig:
    return load_config(read_recipe(campaign.recipe_path(name)))


QUESTIONS = ("rules", "objectives", "heads", "road", "crackforest", "privacy")


def recipes_of(table: str) -> list[str]:
    (part,) = tables.TABLES[table]
    return [row.recipe for row in part.rows]


@pytest.mark.parametrize(
    "recipes", [recipes_of(name) for name in ("presets", *QUESTIONS)], ids=("presets", *QUESTIONS)
)
def test_recipes_of_a_set_are_scored_alike_and_take_equal_steps(recipes: list[str]) -> None:
    configs = [settings(name) for name in recipes]
    assert len(set(recipes)) == len(recipes)
    assert len({(c.eval.shard, c.eval.matching, c.model.clusters, c.simulation.shards) for c in configs}) == 1
    stepping = [c for c in configs if c.loss.objective != "spectral"]
    assert len({(c.rounds * c.local.steps, c.local.batch) for c in stepping}) == min(1, len(stepping))


@pytest.mark.parametrize("name", QUESTIONS)
def test_recipes_of_a_question_share_their_features(name: str) -> None:
    models = [settings(recipe).model for recipe in recipes_of(name)]
    seen = {
        (m.backbone, m.weights, m.stages, m.height, m.width, m.resize, m.crop, m.normalize) for m in models
    }
    assert len(seen) == 1


def test_rules_differ_in_nothing_but_the_rule() -> None:
    base = settings("camvid-fuss-ref").to_flat()
    for recipe in recipes_of("rules"):
        if recipe.startswith("camvid-rule-"):
            changed = {key for key, value in settings(recipe).to_flat().items() if value != base[key]}
            assert changed <= {
                *(key for key in base if key.startswith("centroids.")),
                "aggregation.keep-least-moved",
                "name",
            }
            assert len(changed) > 1, recipe


def write_run(folder: Path, rounds: int, last: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"rounds": rounds}))
    lines = [json.dumps({"round": number}) for number in range(1, last + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" if lines else "")
    return folder


def test_a_run_is_finished_with_its_last_round(tmp_path: Path) -> None:
    assert not campaign.finished(tmp_path / "none")
    assert not campaign.finished(write_run(tmp_path / "a", 4, 0))
    assert not campaign.finished(write_run(tmp_path / "a", 4, 3))
    assert campaign.finished(write_run(tmp_path / "a", 4, 4))
    (tmp_path / "a" / "metrics.jsonl").write_text('{"round": 4}\n{"rou')
    assert not campaign.finished(tmp_path / "a")


def test_a_run_without_rounds_is_finished_once_it_is_scored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "pretrained", 0, 0)
    assert not campaign.finished(run)
    (run / "metrics.jsonl").write_text('{"round": 0}\n')
    assert campaign.finished(run)


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "camvid-default-seed1", 4, 2)
    assert "--resume" not in campaign.simulate_command("camvid-default", 1, run, None)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "round-0002.json").touch()
    command = campaign.simulate_command("camvid-default", 1, run, tmp_path, ["--set", "local.batch=4"])
    assert command[-4:-2] == ["--set", "local.batch=4"]
    assert command[-2:] == ["--resume", str(run)]
    assert command[command.index("--shards") + 1] == str(tmp_path) and "seed=1" in command


def test_a_failed_run_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def fake(command: list[str], **_: object) -> object:
        run = Path(command[command.index("--run-dir") + 1])
        started.append(run.name)
        if run.name != "b-seed0":
            write_run(run, 4, 4)
        return type("Done", (), {"returncode": int(run.name == "b-seed0")})

    monkeypatch.setattr("subprocess.run", fake)
    monkeypatch.setattr(campaign, "settings_of", lambda name: load_config({"rounds": 4}))
    write_run(tmp_path / "a-seed1", 4, 4)
    assert campaign.run_all(["a", "b"], 2, tmp_path) == ["b-seed0"]
    assert started == ["a-seed0", "b-seed0", "b-seed1"]
    assert campaign.verdict(["b-seed0"]) == 1 and campaign.verdict([]) == 0


def test_a_run_of_an_older_recipe_is_set_aside_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def fake(command: list[str], **_: object) -> object:
        run = Path(command[command.index("--run-dir") + 1])
        assert not run.exists() and "--resume" not in command
        started.append(run.name)
        write_run(run, 4, 4)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", fake)
    monkeypatch.setattr(campaign, "settings_of", lambda name: load_config({"rounds": 4}))
    for seed, older in enumerate(({"local.lr": 0.1}, {"rounds": 9}, {})):
        run = write_run(tmp_path / f"a-seed{seed}", 4, 4)
        (run / "config.json").write_text(load_config({"rounds": 4}, older).to_json())
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "round-0004.json").touch()
        assert campaign.current(run, load_config({"rounds": 4})) == (older == {})
    (tmp_path / "a-seed0.old-1").mkdir()
    assert campaign.run_all(["a"], 3, tmp_path) == []
    assert started == ["a-seed0", "a-seed1"]
    assert json.loads((tmp_path / "a-seed0.old-2" / "config.json").read_text())["local"]["lr"] == 0.1
    assert (tmp_path / "a-seed1.old-1" / "checkpoints" / "round-0004.json").is_file()
    assert "a-seed0: local.lr changed; the old run is now" in capsys.readouterr().out
    assert campaign.run_all(["a"], 3, tmp_path) == [] and len(started) == 2


def test_a_stale_run_that_is_still_written_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("subprocess.run", lambda command, **_: type("Done", (), {"returncode": 0}))
    monkeypatch.setattr(campaign, "settings_of", lambda name: load_config({"rounds": 4}))
    run = write_run(tmp_path / "a-seed0", 4, 4)
    (run / "config.json").write_text(load_config({"rounds": 9}).to_json())
    with sole_writer(run):
        assert campaign.run_all(["a", "b"], 1, tmp_path) == ["a-seed0"]
    assert "== b, seed 0" in capsys.readouterr().out and run.is_dir()


def test_what_another_campaign_has_made_anew_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "a-seed0", 4, 4)
    answers = iter([["local.lr"], []])  # before the lock, and with it
    monkeypatch.setattr(campaign, "differing", lambda run_dir, wanted: next(answers))
    campaign.set_aside(run, load_config({"rounds": 4}))
    assert [path.name for path in tmp_path.iterdir()] == ["a-seed0"]


def test_settings_are_compared_but_not_where_files_lie(tmp_path: Path) -> None:
    wanted = settings("camvid-fuss-ref")
    run = write_run(tmp_path / "run", 4, 4)

    def differing(**changes: object) -> list[str]:
        layer = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
        (run / "config.json").write_text(load_config(wanted.to_flat(), layer).to_json())
        return campaign.differing(run, wanted)

    weights = "/elsewhere/mobilenet_v2_imagenet.safetensors"
    assert differing(model__weights=weights, seed=3, simulation__shards="/x", run_dir="y", resume="z") == []
    assert differing(model__weights="random", sites__expected=9) == ["model.weights"]
    assert differing(loss__negative_draw="derangement") == ["loss.correspondence.negative-draw"]
    (run / "config.json").write_text('{"rounds": 4, "gone": 1}')
    assert campaign.differing(run, wanted) == ["config.json"]
    assert campaign.differing(tmp_path / "none", wanted) == []


def test_missing_shards_are_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs the shards folder .*gone"):
        campaign.check(["camvid-default"], tmp_path / "gone")
    with pytest.raises(UserError, match="does not exist"):
        campaign.check(["camvid-nothing"], tmp_path)


def test_every_recipe_is_explained() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    missing = [path.stem for path in (ROOT / "recipes").glob("*.toml") if f"`{path.stem}`" not in text]
    assert missing == []
    named = {word for word in re.findall(r"`([a-z0-9]+-[a-z0-9-]+)`", text) if word.split("-")[0] in FAMILIES}
    assert sorted(word for word in named if not campaign.recipe_path(word).is_file()) == []


def test_every_partition_command_of_the_page_and_of_recipes_is_understood() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    commands = re.findall(r"`python -m partitions ([^`]+)`", text)
    assert len(commands) == 10
    comments = [path.read_text(encoding="utf-8").replace("\\\n#", "") for path in RECIPES]
    found = [re.findall(r"^#.*python -m partitions ([^\n#]+)", comment, re.MULTILINE) for comment in comments]
    commands += [command for several in found for command in several]
    assert len(commands) == 21
    read = {settings(path.stem).simulation.shards for path in RECIPES}
    read |= {f"shards/{Path(settings(path.stem).source.shard).parent.name}" for path in RECIPES}
    read.add(os.path.normpath(Path("shards/binary", settings("binary-fuss-ref").eval.shard).parent))
    for words in commands:
        out = understood(partitions_line, words.split())["out"]
        assert out.startswith("shards/") and out in read, out


def test_the_commands_for_a_folder_of_ones_own_make_shards_of_a_flat_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for number in range(8):
            put_picture(tmp_path / f"DATA/{split}/images/{number}.png", (32, 32), grey=number)
    for number in range(8):
        put_label(tmp_path / f"DATA/val/masks/{number}.png", [0, 1], (32, 32))
    (tmp_path / "TABLE.json").write_text('{"name": "own", "names": ["rest", "defect"]}')
    text = campaign.recipe_path("binary-fuss-ref").read_text(encoding="utf-8").replace("\\\n#", "")
    commands = re.findall(r"^# python -m partitions (.+)", text, re.MULTILINE)
    assert len(commands) == 2
    assert [partition(command.split()) for command in commands] == [0, 0]
    config = settings("binary-fuss-ref")
    assert len(list((tmp_path / config.simulation.shards).glob("site-*.jsonl"))) == 4
    assert (tmp_path / config.simulation.shards / config.eval.shard).is_file()
