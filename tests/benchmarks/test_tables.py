"""The driving-scene tables say what was published, row by row, and their runs follow one another rightly."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.settings.load import load_config, read_recipe
from common.settings.schema import RunConfig
from tests.conftest import ROOT
from tests.support.commands import understood

sys.path.insert(0, str(ROOT / "benchmarks"))

import campaign
import tables
from tables import TABLES, Part, Row

QUESTIONS = ("label-free", "presets", "rules", "objectives", "heads", "road", "crackforest", "privacy")
"""Tables of task `unsupervised`, which `server report` compares; the others are of driving scenes."""
DRIVING = {name: parts for name, parts in TABLES.items() if name not in QUESTIONS}
PARTS = [part for parts in DRIVING.values() for part in parts]
(GRID,) = TABLES["grid"]
(PRETRAINING,) = TABLES["pretraining"]
REDUCTIONS = TABLES["reductions"]

# Written down anew from the source's slides, in their own form: shares, in the order of the columns.
_TRANSFORMS = {
    "idda-transform-none": ".6849/.5793/.4817",
    "idda-transform-crop": ".6480/.6010/.4961",
    "idda-transform-normalize": ".6763/.5773/.4771",
    "idda-transform-rotation": ".6724/.6037/.4954",
    "idda-transform-flip": ".6806/.5911/.4880",
    "idda-transform-jitter": ".6834/.5754/.4786",
}
_GRID = {  # sites a round, epochs, rounds
    (2, 1, 2400): ".6168/.5781/.4736",
    (2, 3, 800): ".6212/.5785/.4724",
    (2, 6, 400): ".6184/.5794/.4673",
    (2, 10, 240): ".6214/.5786/.4898",
    (2, 15, 160): ".6093/.5761/.4683",
    (2, 24, 100): ".6035/.5684/.4628",
    (4, 1, 1200): ".6002/.5592/.4588",
    (4, 3, 400): ".6085/.5686/.4624",
    (4, 6, 200): ".6124/.5773/.4785",
    (4, 10, 120): ".5920/.5591/.4564",
    (8, 1, 600): ".5732/.5280/.4286",
    (8, 3, 200): ".5879/.5469/.4677",
    (8, 6, 100): ".5876/.5447/.4713",
    (16, 1, 300): ".5293/.4979/.4173",
    (16, 3, 100): ".5445/.5173/.4553",
    (24, 1, 200): ".4927/.4767/.3786",
}
_PRETRAINING = {
    "none": ".7548/.3140/.3186/.2574",
    "crop": ".6940/.2742/.2700/.2151",
    "normalize": ".7579/.3232/.3172/.2606",
    "rotation": ".7334/.3103/.3162/.2555",
    "flip": ".7506/.3122/.3093/.2633",
    "jitter": ".7532/.3432/.3432/.2730",
    "jitter-crop": ".6786/.3165/.3105/.2543",
    "jitter-rotation": ".7267/.3213/.3269/.2899",
    "jitter-normalize": ".7571/.3382/.3404/.2852",
    "fda-1": ".7574/.3306/.3310/.2742",
    "fda-3": ".7593/.3296/.3245/.2606",
    "fda-5": ".7581/.3312/.3356/.2561",
    "fda-7": ".7486/.3204/.3209/.2601",
    "fda-25": ".7565/.3233/.3241/.2536",
    "fda-51": ".7523/.3091/.3108/.2327",
}
_ADAPTATION = {  # sites a round, epochs, rounds between two teachers
    "c2-e1-tinf": ".3552/.3567/.3021",
    "c2-e2-tinf": ".3624/.3619/.3036",
    "c8-e1-tinf": ".3612/.3652/.3009",
    "c8-e2-tinf": ".3602/.3629/.3006",
    "c2-e1-t1": ".3566/.3603/.3058",
    "c2-e2-t1": ".3531/.3611/.3093",
    "c8-e1-t1": ".3608/.3608/.2990",
    "c8-e2-t1": ".3561/.3620/.2991",
    "c2-e1-t4": ".3560/.3587/.3049",
    "c8-e1-t4": ".3602/.3623/.2977",
}
_CENTRALISED = {
    "inverse-01": ".655/.620/.506",
    "inverse-02": ".658/.624/.515",
    "inverse-03": ".650/.623/.516",
    "per-class": ".471/.456/.379",
    "weighted-2": ".648/.616/.519",
    "weighted-5": ".621/.598/.484",
    "weighted-10": ".592/.569/.453",
}
_FEDERATED = {
    "inverse-01": ".628/.596/.474",
    "inverse-02": ".629/.602/.472",
    "inverse-03": ".621/.597/–",  # the third is not legible
    "weighted-2": ".617/.585/.471",
}
_REDUCED_PRETRAINING = {
    "inverse-01": ".3536/.3561/.2991",
    "inverse-02": ".3530/.3400/.2764",
    "inverse-03": ".3370/.3345/.2688",
}
PUBLISHED: dict[str, dict[str, str]] = {
    "transforms": _TRANSFORMS,
    "grid": {"idda-transform-crop": ".6480/.6010/.4961"}
    | {"idda-grid-c{}-e{}-r{}".format(*numbers): figures for numbers, figures in _GRID.items()},
    "pretraining": {f"gta5-pretrain-{name}": figures for name, figures in _PRETRAINING.items()},
    "adaptation": {"gta5-pretrain-jitter": ".3504/.3433/.2866"}
    | {f"idda-adapt-{name}": figures for name, figures in _ADAPTATION.items()},
    "reductions-centralised": {"idda-transform-crop": ".653/.611/.463"}
    | {f"idda-reduction-centralised-{name}": figures for name, figures in _CENTRALISED.items()},
    "reductions-federated": {"idda-grid-c2-e3-r800": ".618/.586/.455"}
    | {f"idda-reduction-federated-{name}": figures for name, figures in _FEDERATED.items()},
    "reductions-pretraining": {"gta5-pretrain-jitter": ".3353/.3301/.2816"}
    | {f"idda-reduction-pretrain-{name}": figures for name, figures in _REDUCED_PRETRAINING.items()},
}


def settings(recipe: str) -> dict[str, Any]:
    return tables.settings_of(recipe).to_flat()


def changed(recipe: str, base: str) -> set[str]:
    """Return the keys in which two recipes differ, names apart."""
    first = settings(base)
    return {key for key, value in settings(recipe).items() if value != first[key]} - {"name"}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_rows_of_a_table_are_runs_that_can_be_compared(part: Part) -> None:
    configs = [tables.settings_of(recipe) for recipe in part.recipes]
    assert len({row.recipe for row in part.rows}) == len(part.rows)
    assert len({config.simulation.shards for config in configs}) == 1
    assert all(config.network.output_stride == configs[0].network.output_stride for config in configs)
    for row in part.rows:
        assert len(row.published) in (0, len(part.columns))
        shards = tables.settings_of(row.recipe).eval.shard.split(",")
        assert set(part.columns.values()) <= {Path(shard).stem for shard in shards}
    tables.check_compute(part)


def test_every_row_of_the_source_is_there() -> None:
    rows = {name: sum(len(part.rows) for part in parts) for name, parts in DRIVING.items()}
    assert rows == {
        "transforms": 6,
        "grid": 17,
        "pretraining": 15,
        "adaptation": 11,
        "reductions": 17,
        "clusters": 6,
        "camvid": 15,
    }


def in_per_cent(share: str) -> str:
    """Write ``.6849`` as ``68.49``, digit by digit: nothing is rounded."""
    return f"{share[1:3]}.{share[3:]}" if share.startswith(".") else share


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_figure_is_as_published(part: Part) -> None:
    """Row by row; nobody has published what the other tables show."""
    found = {row.recipe: row.published for row in part.rows if row.published}
    wanted = PUBLISHED.get(part.name, {})
    assert found == {name: tuple(map(in_per_cent, figures.split("/"))) for name, figures in wanted.items()}


def test_every_published_table_is_shown() -> None:
    assert set(PUBLISHED) == {part.name for part in PARTS if any(row.published for row in part.rows)}
    figures = [f for rows in PUBLISHED.values() for row in rows.values() for f in row.split("/")]
    assert len(figures) == 6 * 3 + 17 * 3 + 15 * 4 + 11 * 3 + 17 * 3


def test_names_of_the_grid_say_what_is_run() -> None:
    for row in GRID.rows[1:]:
        config = tables.settings_of(row.recipe)
        numbers = (config.sites.per_round, config.local.epochs, config.rounds)
        assert row.recipe == "idda-grid-c{}-e{}-r{}".format(*numbers) and row.says == "{}, {}, {}".format(
            *numbers
        )
        assert config.rounds % config.eval.every == 0, "the last round is one of evenly spaced scores"


def test_names_of_adaptation_say_what_is_run() -> None:
    for row in TABLES["adaptation"][0].rows[1:]:
        config = tables.settings_of(row.recipe)
        every = "inf" if config.teacher.update == "never" else config.teacher.every
        assert row.recipe == f"idda-adapt-c{config.sites.per_round}-e{config.local.epochs}-t{every}"
        assert row.says == f"{config.sites.per_round}, {config.local.epochs}, {every}".replace("inf", "never")


@pytest.mark.parametrize(
    ("recipe", "settings_", "sentence"),
    [
        ("idda-grid-c2-e6-r400", {"rounds": 401}, "idda-grid-c2-e6-r400 makes the sites take 4812 epochs"),
        ("idda-transform-crop", {"local.epochs": 9}, "idda-transform-crop makes the sites take 4320 epochs"),
        ("idda-grid-c24-e1-r200", {"local.steps": 12}, "idda-grid-c24-e1-r200 counts steps"),
    ],
)
def test_a_row_of_other_compute_is_found(
    monkeypatch: pytest.MonkeyPatch, recipe: str, settings_: dict[str, Any], sentence: str
) -> None:
    def patched(name: str) -> RunConfig:
        return load_config(read_recipe(campaign.recipe_path(name)), settings_ if name == recipe else {})

    monkeypatch.setattr(tables, "settings_of", patched)
    with pytest.raises(UserError, match=sentence):
        tables.check_compute(GRID)


def test_a_row_changes_what_its_table_asks_about_and_nothing_else() -> None:
    first = "idda-transform-none"
    assert changed("idda-transform-crop", first) == {"transforms.crop"}
    assert changed("idda-transform-normalize", first) == {"network.normalize"}
    assert changed("idda-transform-rotation", first) == {"transforms.rotation"}
    assert changed("idda-transform-flip", first) == {"transforms.flip"}
    assert changed("idda-transform-jitter", first) == {"transforms.jitter"}
    free = {"rounds", "local.epochs", "sites.per-round", "eval.every"}
    for row in GRID.rows[1:]:
        assert changed(row.recipe, "idda-supervised") <= free
    assert changed("idda-transform-crop", "idda-supervised") <= free | {
        "sites.pool",
        "sites.deadline-seconds",
    }
    for part in REDUCTIONS:
        for row in part.rows[1:]:
            assert changed(row.recipe, part.rows[0].recipe) <= {
                "reduction.kind",
                "reduction.power",
                "reduction.weight",
            }
    for part in TABLES["clusters"]:
        for row in part.rows[1:]:
            assert changed(row.recipe, part.rows[0].recipe) == {"clusters.layers"}


def test_fda_is_the_side_of_the_window() -> None:
    for row in PRETRAINING.rows[-6:]:
        style = tables.settings_of(row.recipe).style
        assert row.says == f"FDA({style.half_side * 2 + 1})" and style.transfer == "fourier"
        assert changed(row.recipe, "gta5-pretrain-none") <= {"style.transfer", "style.side"}
    assert all(tables.settings_of(row.recipe).rounds == 0 for row in PRETRAINING.rows)


@pytest.mark.parametrize("part", [part for part in PARTS if part.start], ids=lambda part: part.name)
def test_adaptation_alone_pretrains_what_the_table_hands_over(part: Part) -> None:
    """Whatever pretraining looks at is alike, so that the shared model is only a saving of time."""
    looked_at = ("network.", "transforms.", "source.", "style.", "reduction.", "sgd.", "local.batch")
    for recipe in filter(tables.goes_on, part.recipes):
        differing = {key for key in changed(recipe, part.start) if key.startswith(looked_at)}
        # pretraining has source.lr, freezes nothing and looks at no site
        assert differing <= {"sgd.lr", "network.freeze", "network.site-statistics"}, recipe
    assert tables.settings_of(part.start).rounds == 0


def write_run(folder: Path, recipe: str, miou: dict[str, float], clusters: dict[str, float]) -> None:
    config = tables.settings_of(recipe)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    sets = {
        name: {"miou": value} | ({"cluster_miou": clusters[name]} if name in clusters else {})
        for name, value in miou.items()
    }
    early = {"round": 1, "miou": 0.99, "sets": {name: {"miou": 0.99} for name in miou}}
    last = {"round": config.rounds, "miou": next(iter(miou.values())), "sets": sets}
    (folder / "metrics.jsonl").write_text(json.dumps(early) + "\n" + json.dumps(last) + "\n")


def test_a_table_shows_the_last_round_of_finished_runs(tmp_path: Path) -> None:
    part = TABLES["clusters"][0]
    recipe = part.rows[1].recipe
    for seed, value in enumerate((0.40, 0.44)):
        miou = {"train_eval": value, "ts1": 0.3, "ts2": 0.2}
        write_run(tmp_path / f"{recipe}-seed{seed}", recipe, miou, {"ts2": 0.25})
    text = tables.table_text(part, 3, tmp_path)
    assert f"| `{recipe}` | 42.0 ± 2.8 | 30.0 ± 0.0 | 20.0 ± 0.0 (clusters 25.0 ± 0.0) | 2 |" in text
    assert f"| one model | `{part.rows[0].recipe}` | – | – | – | – |" in text and "99" not in text
    widths = {line.count(" | ") for line in text.splitlines() if "---" not in line}
    assert len(widths) == 1


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[list[str]]:
    """Return the commands that a campaign on existing shards would run."""
    commands: list[list[str]] = []

    def fake(command: list[str], **_: object) -> object:
        commands.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("subprocess.run", fake)
    given = [*words, "--shards", str(tmp_path), "--out", str(tmp_path / "runs")]
    assert tables.main(given) == 0
    return commands


def recipe_and_seed(command: list[str]) -> str:
    return Path(command[command.index("--run-dir") + 1]).name


def test_adaptation_goes_on_from_one_pretrained_model_a_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = started(
        tmp_path, monkeypatch, "--table", "adaptation", "--seeds", "2", "--gpus-per-site", "0.5",
        "--recipes", "idda-adapt-c8-e1-t4", "idda-adapt-c2-e2-t1",
    )  # fmt: skip
    assert [recipe_and_seed(command) for command in commands] == [
        "gta5-pretrain-jitter-seed0",
        "idda-adapt-c2-e2-t1-seed0",
        "idda-adapt-c8-e1-t4-seed0",
        "gta5-pretrain-jitter-seed1",
        "idda-adapt-c2-e2-t1-seed1",
        "idda-adapt-c8-e1-t4-seed1",
    ]
    for command in commands:
        assert command[command.index("--gpus-per-site") + 1] == "0.5"
        given = [word for word in command if word.startswith("source.checkpoint=")]
        seed = recipe_and_seed(command)[-1]
        model = f"source.checkpoint={tmp_path / 'runs' / f'gta5-pretrain-jitter-seed{seed}'}"
        assert given == ([] if "pretrain" in recipe_and_seed(command) else [model])


def test_supervised_tables_pretrain_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = started(tmp_path, monkeypatch, "--table", "transforms", "--seeds", "1")
    assert [recipe_and_seed(command) for command in commands] == [
        f"{row.recipe}-seed0" for row in TABLES["transforms"][0].rows
    ]
    assert not any("source.checkpoint" in word for command in commands for word in command)


@pytest.mark.parametrize(
    "words",
    [
        ["--table", "nothing"],
        ["--table", "grid", "--recipes", "idda-transform-flip"],
        ["--table", "camvid", "--shards", "shards/camvid"],
    ],
)
def test_words_that_cannot_be(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        tables.parse(words)


def test_the_page_has_every_row_as_published() -> None:
    text = (ROOT / "docs" / "driving.md").read_text(encoding="utf-8")
    for part in PARTS:
        for row in part.rows:
            assert "| " + " | ".join(tables.known_cells(row)) + " | " in text, row.recipe
    bad = replace(GRID.rows[3], published=("61.84", "57.94", "46.37"))
    assert "| " + " | ".join(tables.known_cells(bad)) + " | " not in text, "two digits exchanged are found"


def test_every_command_of_the_page_is_understood() -> None:
    from partitions.__main__ import _line as partitions_line
    from server.__main__ import _line as server_line

    text = (ROOT / "docs" / "driving.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(
        r"^python (-m partitions|-m server|benchmarks/tables\.py) ([^\n#]+)", text, re.MULTILINE
    )
    parsers: dict[str, Callable[[list[str]], dict[str, Any]]] = {
        "-m partitions": lambda words: understood(partitions_line, words),
        "-m server": lambda words: understood(server_line, words),
        "benchmarks/tables.py": lambda words: vars(tables.parse(words)),
    }
    assert {program for program, _ in commands} == set(parsers)
    for program, words in commands:
        recipe = parsers[program](words.split()).get("recipe")
        assert recipe is None or (ROOT / recipe).is_file(), words


def test_row_of_no_published_figures_still_names_its_recipe() -> None:
    assert tables.known_cells(Row("camvid-adapt", "adapted")) == ["adapted", "`camvid-adapt`"]
