"""Settings of a student's first stage: those of its run that task `unsupervised` knows, and a few of its own."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.settings.load import load_config
from common.settings.schema import RunConfig
from common.settings.section import Scalar
from common.settings.tasks import TASK_FACTS
from server.run_dir import FIRST_STAGE
from server.settings.applicability import refuse_foreign, tasks_of
from server.settings.rules import check_names, conflict_of, rule_conflict

_STUDENT_ALONE = (
    "local.steps",
    "local.epochs",
    "local.batch",
    "local.prox-mu",
    "local.clip-norm",
    "aggregation.optimizer",
    "aggregation.lr",
    "aggregation.momentum",
    "aggregation.second-moment",
    "aggregation.tau",
    "sites.per-round",
    "run-dir",
    "resume",
)
"""Keys that both tasks know, whose values are the student's: they are chosen for many steps of a whole network."""


def first_stage_settings(config: RunConfig) -> RunConfig:
    """Return the settings of the first stage of a run of task `student`; its folder is not among them."""
    task = TASK_FACTS["unsupervised"].name
    given: dict[str, Scalar] = {
        key: value  # also where it is the default, which the preset may have changed
        for key, value in config.to_flat().items()
        if key not in _STUDENT_ALONE and task in tasks_of(key)
    }
    student = config.student
    given |= {
        "task": task,
        "preset": config.preset,
        "name": f"{config.name}-{FIRST_STAGE}",
        "rounds": student.first_rounds,
        "local.steps": student.first_steps,
        "local.batch": student.first_batch,
    }
    return load_config(given)


def check_first_stage(config: RunConfig) -> None:
    """Raise `UserError` where the settings of the first stage do not fit together."""
    stage = first_stage_settings(config)
    check_names(stage)
    if conflict := conflict_of(stage) or rule_conflict(stage):
        raise UserError(f"The settings of the student's first stage do not fit together: {conflict}.")
    refuse_foreign(stage)


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run directory holds a checkpoint."""
    return any((run_dir / "checkpoints").glob("round-*.json"))
