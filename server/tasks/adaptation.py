"""Task `adaptation`: a whole network that was pretrained on a labelled source and learns from sites without labels.

Hooks import what they need themselves: to check settings must not take the time of loading torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.settings.tasks import TASK_FACTS
from server.tasks.network import NetworkTask
from server.tasks.registry import SERVER_TASKS

if TYPE_CHECKING:
    from common.data.classes import ClassTable
    from common.settings.schema import RunConfig
    from server.tasks.adaptation_training import AdaptationTraining

_FACTS = TASK_FACTS["adaptation"]


@SERVER_TASKS.register(_FACTS.name, summary=_FACTS.summary, facts=_FACTS)
class AdaptationTask(NetworkTask):
    """Pretraining comes before the first round; one that was stopped can be gone on with."""

    def unfinished(self, config: RunConfig) -> Path | None:
        """Return the snapshot of a pretraining that was stopped."""
        from server.adaptation.pretrain_snapshot import stopped_pretraining

        return stopped_pretraining(config)

    def begin_run(self, config: RunConfig, run_dir: Path, unfinished: Path | None) -> None:
        """Check source and snapshot, and take the snapshot into the run directory."""
        from server.adaptation.pretrain_snapshot import migrate_pretraining
        from server.preflight import check_start

        check_start(config, run_dir, unfinished)
        if unfinished is not None:
            migrate_pretraining(unfinished, run_dir)

    def training(self, config: RunConfig, classes: ClassTable | None) -> AdaptationTraining:
        """Train the network of the settings by teachers."""
        from server.tasks.adaptation_training import AdaptationTraining

        self.check_settings(config)
        return AdaptationTraining.of(config, classes)
