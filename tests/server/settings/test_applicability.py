"""Is a setting refused that does nothing in the run's task, and no other?"""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from common.errors import UserError
from common.settings.load import PRESETS, load_config
from common.settings.schema import RunConfig
from common.settings.tasks import TASK_FACTS
from server.settings.applicability import (
    COUNTERPARTS,
    acts,
    foreign_keys,
    refuse_foreign,
    tasks_of,
)
from server.simulate import check_run
from server.tasks.base import task_of
from tests.support.federation import tiny_config

TASKS: tuple[str, ...] = get_args(RunConfig.model_fields["task"].annotation)
DEFAULTS = RunConfig().to_flat()

# Written down anew, from what sites and server look at: what acts in all tasks, then in networks alone.
IN_ALL = {
    *("task", "preset", "name", "rounds", "seed", "deterministic", "run-dir", "resume", "wire.dtype"),
    *("sites.expected", "sites.per-round", "sites.minimum", "sites.pool", "sites.largest-share"),
    *("sites.deadline-seconds", "sites.wait-seconds", "checkpoint.keep"),
    *("local.steps", "local.epochs", "local.batch", "local.clip-norm", "local.prox-mu", "centroids.share"),
    *("aggregation.weights", "aggregation.rule", "aggregation.trim", "aggregation.malicious"),
    *("aggregation.keep", "aggregation.optimizer", "aggregation.lr", "aggregation.momentum"),
    *("aggregation.second-moment", "aggregation.tau"),
    *("eval.where", "eval.shard", "eval.classes", "eval.every", "eval.last", "eval.flip"),
    *("simulation.shards", "simulation.data-root", "simulation.cache", "simulation.threads"),
}
OF_NETWORKS = ("network", "transforms", "sgd", "reduction", "style", "clusters")
OF_ADAPTATION = ("source",)
OF_NETWORK_MEANS = {"wire.differences", "simulation.readers", "simulation.decoded"}
OF_STUDENTS = {"teacher": {"adaptation", "student"}, "student": {"student"}}
"""Sections that a student looks at beside those of its first stage and of networks."""

FOREIGN: list[tuple[str, str, Any, tuple[str, ...]]] = [
    # task, key, value, the value to go back to and what to use instead
    ("supervised", "local.lr", 0.01, ("0.0005", "sgd.lr")),
    ("supervised", "local.moon-weight", 1.0, ("0.0",)),
    ("supervised", "local.moon-temperature", 0.1, ("0.5",)),
    ("supervised", "local.keep-optimizer", True, ("false",)),
    ("supervised", "local.prox-parameters", "nonlinear", ("'all'",)),
    ("supervised", "local.neighbours", 3, ("7",)),
    ("supervised", "local.neighbour-dropout", 0.5, ("0.0",)),
    ("supervised", "local.centroid-lr", 0.5, ("0.005",)),
    ("supervised", "model.weights", "random", ("'pretrained'", "network.weights")),
    ("supervised", "model.height", 64, ("225", "transforms.height")),
    ("supervised", "model.clusters", 11, ("27",)),
    ("supervised", "cache.dtype", "float32", ("'float16'",)),
    ("supervised", "loss.objective", "correspondence", ("'spectral'", "reduction.kind")),
    ("supervised", "loss.correspondence.intra-shift", 0.5, ("0.18",)),
    ("supervised", "centroids.merge", "matched", ("'lloyd'", "aggregation.rule")),
    ("supervised", "centroids.polish-passes", 2, ("0",)),
    ("supervised", "privacy.quorum", 0.8, ("0.66",)),
    ("supervised", "privacy.minimum-count", 5, ("0",)),
    ("supervised", "aggregation.keep-least-moved", True, ("false",)),
    ("supervised", "eval.matching", "many-to-one", ("'hungarian'",)),
    ("supervised", "eval.crf", True, ("false", "evaluate --crf")),
    ("supervised", "teacher.update", "mean", ("'never'",)),
    ("supervised", "teacher.max-square-weight", 0.1, ("0.0",)),
    ("supervised", "source.shard", "source.jsonl", ("''",)),
    ("supervised", "source.lr", 0.1, ("0.005", "sgd.lr")),
    ("supervised", "source.checkpoint", "runs/source", ("''", "network.weights")),
    ("supervised", "style.mix", 0.5, ("1.0",)),
    ("adaptation", "local.lr", 0.01, ("0.0005", "sgd.lr")),
    ("adaptation", "local.keep-optimizer", True, ("false",)),
    ("adaptation", "loss.crf-weight", 0.1, ("0.0",)),
    ("adaptation", "cache.mixed-precision", True, ("false", "sgd.mixed-precision")),
    ("adaptation", "centroids.momentum", 0.5, ("0.0",)),
    ("adaptation", "eval.matching", "many-to-one", ("'hungarian'",)),
    ("unsupervised", "network.weights", "random", ("'pretrained'", "model.weights")),
    ("unsupervised", "network.batchnorm", "local", ("'shared'",)),
    ("unsupervised", "transforms.flip", 0.5, ("0.0",)),
    ("unsupervised", "transforms.width", 64, ("928", "model.width")),
    ("unsupervised", "sgd.lr", 0.01, ("0.05", "local.lr")),
    ("unsupervised", "sgd.algorithm", "adam", ("'sgd'",)),
    ("unsupervised", "reduction.kind", "weighted", ("'mean'", "loss.objective")),
    ("unsupervised", "reduction.lovasz-weight", 1.0, ("0.0",)),
    ("unsupervised", "style.transfer", "lab", ("'none'",)),
    ("unsupervised", "style.mix", 0.5, ("1.0",)),
    ("unsupervised", "teacher.reduce", True, ("false",)),
    ("unsupervised", "clusters.layers", "bn", ("'none'",)),
    ("unsupervised", "source.steps", 9, ("0", "local.steps")),
]


def sentence_of(config: RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        refuse_foreign(config)
    return str(caught.value)


def says(sentence: str, word: str) -> bool:
    """Tell whether a whole word, key or number stands in a sentence."""
    return bool(re.search(rf"(?<![\w.-]){re.escape(word)}(?!\.?[\w-])", sentence))


def keys_named(sentence: str) -> set[str]:
    return {key for key in DEFAULTS if "." in key and says(sentence, key)}


@pytest.mark.parametrize(("task", "key", "value", "remedy"), FOREIGN)
def test_a_setting_of_another_task_is_refused_in_one_sentence(
    task: str, key: str, value: Any, remedy: tuple[str, ...]
) -> None:
    config = load_config({"task": task, key: value})
    shown = f"'{value}'" if isinstance(value, str) else str(value).lower()
    sentence = sentence_of(config)
    missing = [word for word in (key, shown, f"'{task}'", *remedy) if not says(sentence, word)]
    assert not missing and ". " not in sentence, sentence
    assert keys_named(sentence) == {key, *remedy[1:]} & DEFAULTS.keys(), sentence
    named = sentence.partition(" alone")[0]
    assert [other for other in TASKS if f"'{other}'" in named] == [
        other for other in TASKS if other in tasks_of(key)
    ]
    with pytest.raises(UserError, match=f"^{key} is "):
        task_of(config).check_settings(config)


def test_a_simulation_refuses_before_it_looks_at_pictures(scenes: Any, tmp_path: Any) -> None:
    config = tiny_config(scenes, tmp_path / "run", 4, sgd__lr=0.5)
    with pytest.raises(UserError, match=r"^sgd\.lr is 0\.5"):
        check_run(config)
    assert not (tmp_path / "run").exists()


def test_all_are_named_at_once() -> None:
    given = {"task": "supervised", "local.lr": 0.1, "loss.cell": 5}
    assert keys_named(sentence_of(load_config(given))) == {"local.lr", "sgd.lr", "loss.modularity.cell"}
    given |= {"cache.views": 1, "model.dim": 8, "teacher.every": 2}
    sentence = sentence_of(load_config(given))
    assert keys_named(sentence) == {"model.dim", "cache.views", "local.lr", "loss.modularity.cell"}
    assert sentence.startswith("model.dim is 8") and "24" in sentence and "1 more" in sentence


@pytest.mark.parametrize(
    "style",
    [{"style.transfer": "lab"}, {"style.side": 5}, {"style.height": 64}],
    ids=str,
)
def test_styles_of_supervised_training_are_for_clusters(style: dict[str, Any]) -> None:
    (key,) = style
    sentence = sentence_of(load_config({"task": "supervised"} | style))
    assert (
        "which task 'supervised' needs for clusters alone, but clusters.layers is 'none'; leave it"
        in sentence
    )
    for fine in ({"task": "supervised", "clusters.layers": "decoder"}, {"task": "adaptation"}):
        refuse_foreign(load_config(fine | style))
    assert key in foreign_keys(load_config(style))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_never_refused(task: str, preset: str) -> None:
    """Neither a preset's values, nor the list of all settings, nor a default that the preset has changed."""
    config = load_config({"task": task, "preset": preset})
    refuse_foreign(config)
    refuse_foreign(load_config(config.to_flat()))
    refuse_foreign(load_config(DEFAULTS | {"task": task, "preset": preset}))


def test_every_setting_is_of_the_tasks_that_look_at_it() -> None:
    """A new key has to be thought about: it is in one of the lists above, or of task `unsupervised` alone."""
    assert set(DEFAULTS) >= IN_ALL
    for key in DEFAULTS:
        section = key.partition(".")[0]
        expected = {"unsupervised", "student"}
        if key in IN_ALL:
            expected = set(TASKS)
        elif section in OF_ADAPTATION or key == "style.mix":
            expected = {"adaptation"}
        elif section in OF_NETWORKS or key in OF_NETWORK_MEANS:
            expected = {"supervised", "adaptation"}
            if section not in ("style", "clusters"):
                expected |= {"student"}
        elif section in OF_STUDENTS:
            expected = OF_STUDENTS[section]
        assert set(tasks_of(key)) == expected, key


def test_the_table_names_settings_that_exist() -> None:
    known = set(DEFAULTS) | {key.partition(".")[0] for key in DEFAULTS}
    assert set().union(*(facts.settings for facts in TASK_FACTS.values())) <= known
    for group in COUNTERPARTS:
        assert set(group) <= set(DEFAULTS) and len(group) > 1
        assert len({tasks_of(key) for key in group}) > 1, "they would never stand in for one another"


def test_settings_that_lack_another_one_are_taken() -> None:
    """They are switched on top of a recipe."""
    idle: list[dict[str, Any]] = [
        {"task": "supervised", "clusters.exact": 4, "reduction.power": 0.5, "aggregation.tau": 0.1},
        {"task": "adaptation", "style.side": 5, "teacher.every": 4, "source.epochs": 3, "rounds": 0},
        {"loss.temperature": 0.5, "local.lr": 0.1, "aggregation.trim": 0.1, "privacy.quorum": 0.8},
    ]
    for given in idle:
        config = load_config(given)
        refuse_foreign(config)
        assert all(acts(key, config) for key in given)
