"""Applicability of settings: in which task each acts, and a refusal of those that do nothing in the run's own.

All tasks share one set of settings, so that a key of another task is easily taken for one of one's own. Only values
that differ from the default are refused: a list of all settings may be handed over. Those that the chosen preset
sets are taken as well, since a preset also says what acts in all tasks.

Not asked is whether a setting lacks another one of its task (``clusters.exact`` without ``clusters.layers``):
those are switched by ``--set`` on top of a recipe. Only ``style`` is, in task `supervised`: there it makes clusters,
and a transfer without them would look as if images took it on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.settings.section import Scalar
from common.settings.tasks import TASK_FACTS, TaskFacts

Words = tuple[str, ...]

# Keys that do for different tasks what is nearly the same.
COUNTERPARTS: tuple[Words, ...] = (
    ("sgd.lr", "local.lr", "source.lr"),
    ("sgd.mixed-precision", "cache.mixed-precision"),
    ("local.batch", "source.batch"),
    ("local.epochs", "source.epochs"),
    ("local.steps", "source.steps"),
    ("network.dropout", "model.dropout"),
    ("network.normalize", "model.normalize"),
    ("network.weights", "source.checkpoint"),
    ("network.weights", "model.weights"),
    ("transforms.crop", "model.crop"),
    ("transforms.height", "model.height"),
    ("transforms.width", "model.width"),
    ("reduction.kind", "loss.objective"),
    ("aggregation.rule", "centroids.merge"),
)

# What does it where no key does.
COMMANDS: Mapping[str, str] = {"eval.crf": "`python -m server evaluate --crf` on a checkpoint"}


def refuse_foreign(config: RunConfig) -> None:
    """Raise `UserError` for the first setting that was changed and does nothing in the run's task."""
    found = foreign_keys(config)
    if found:
        raise UserError(_sentence(found, config))


def foreign_keys(config: RunConfig) -> list[str]:
    """Return the keys that were changed and do nothing in the run's task, in the order of the settings."""
    default = RunConfig().to_flat()
    # a preset may say what acts in other tasks too
    preset = load_config({"preset": config.preset}).to_flat()
    return [
        key
        for key, value in config.to_flat().items()
        if not acts(key, config) and value not in (default[key], preset[key])
    ]


def tasks_of(key: str) -> Words:
    """Return the tasks in which a dotted key does anything."""
    return tuple(name for name, facts in TASK_FACTS.items() if _acts_in(key, facts))


def acts(key: str, config: RunConfig) -> bool:
    """Say whether a key does anything in the run's task."""
    return _acts_in(key, config.facts) and not _style_without_clusters(key, config)


def _acts_in(key: str, task: TaskFacts) -> bool:
    for claim in (key, key.partition(".")[0]):
        if any(claim in facts.settings for facts in TASK_FACTS.values()):
            return claim in task.settings
    return True


def _style_without_clusters(key: str, config: RunConfig) -> bool:
    return key.startswith("style.") and not config.facts.pretrains and config.clusters.layers == "none"


def _sentence(found: list[str], config: RunConfig) -> str:
    key, *others = found
    value, default = (_shown(of.to_flat()[key]) for of in (config, RunConfig()))
    *first, last = (f"'{task}'" for task in tasks_of(key))
    where = f"tasks {', '.join(first)} and {last}" if first else f"task {last}"
    why = f"acts in {where} alone, but task is '{config.task}'"
    if _acts_in(key, config.facts):
        why = f"task '{config.task}' needs for clusters alone, but clusters.layers is 'none'"
    use = _instead(key, config)
    remedy = f"leave it at {default}" + (f" and use {use}" if use else "")
    listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{key} is {value}, which {why}; {remedy}" + (f" (likewise {listed})." if others else ".")


def _instead(key: str, config: RunConfig) -> str | None:
    """Return what does in the run's task what a key does in its own."""
    groups = [group for group in COUNTERPARTS if key in group]
    return next((other for group in groups for other in group if acts(other, config)), COMMANDS.get(key))


def _shown(value: Scalar) -> str:
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
