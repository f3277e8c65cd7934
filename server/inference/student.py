"""The predictor of a student: a whole network whose outputs are clusters, named where they were matched to classes."""

from __future__ import annotations

import json

from common.checkpoint import Checkpoint
from common.evaluation.overlay import Legend, make_legend
from server.inference.base import Cluster, Exported, Size
from server.inference.networks import NetworkPredictor


class StudentPredictor(NetworkPredictor):
    """See `server.inference.base.Predictor`; neither the backbone of the first stage nor its file is needed."""

    def __init__(
        self,
        saved: Checkpoint,
        where: str,
        device: str = "auto",
        cluster: Cluster = "auto",
        site: str | None = None,
    ) -> None:
        super().__init__(saved, where, device, cluster, site)

    @property
    def named(self) -> bool:
        """Whether the clusters were matched to classes when the run was scored."""
        return self.saved.mapping is not None and self.saved.classes is not None

    @property
    def legend(self) -> Legend:
        """Classes where clusters were matched to some, else numbers."""
        return make_legend(self.classes.num_classes, self.saved.classes, self.saved.mapping)

    def export(self, size: Size | None = None) -> Exported:
        """Return the network as one module; its file says what each cluster stands for."""
        module, described = super().export(size)
        del described["classes"]
        entries = self.legend.as_json()
        return module, described | {
            "clusters": json.dumps([entries[int(index)] for index in self.legend.of_cluster])
        }
