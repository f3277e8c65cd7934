"""The predictors of whole networks, where style clusters may have networks of their own, and of students."""

from __future__ import annotations

import json
from collections import Counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.checkpoint import Checkpoint
from common.data.classes import ClassTable
from common.errors import UserError
from common.evaluation.crf import refine_logits
from common.evaluation.networks import predict_logits
from common.evaluation.overlay import Bytes, Legend, make_legend, truth_legend
from common.models.network import NETWORKS, SegmentationNetwork, build_network, load_arrays
from common.models.parameter_groups import split_flat
from common.models.site_models import refuse_site
from common.settings.schema import RunConfig
from common.styles.style import extract_style, style_kind
from common.system.device import choose_device
from common.wire import Arrays
from server.inference.base import (
    Cluster,
    Exportable,
    Exported,
    Size,
    checkpoint_classes,
    described_model,
)
from server.states import NetworkState

# Networks in memory at once, about 50 MB each; images of one cluster tend to come together.
HELD = 3


def read_state(saved: Checkpoint, where: str) -> NetworkState:
    """Return what a checkpoint holds; raises `UserError` where sites share nothing, so that there is no network."""
    if saved.config.centroids.share == "none":
        raise UserError(
            f"Checkpoint {where} holds no shared network, because every site trained its own (centroids.share is "
            "'none'); their scores are in the run's report."
        )
    return NetworkState.from_arrays(saved.head, saved.extra)


def choose_networks(state: NetworkState, cluster: Cluster, where: str) -> int | Literal["global", "nearest"]:
    """Turn what was asked for into one network, or the choice by style.

    Raises `UserError` for a cluster that the checkpoint does not have.
    """
    if cluster == "global":
        return "global"
    if cluster == "auto":
        return "nearest" if state.grouping is not None and state.clusters else "global"
    if cluster in state.clusters:
        return cluster
    known = f"clusters 0 to {len(state.clusters) - 1}" if state.clusters else "no style clusters"
    raise UserError(
        f"--cluster {cluster} was given, but {where} has {known}; give one of those, auto or global."
    )


def assemble_network(
    saved: Checkpoint, state: NetworkState, cluster: int | None, where: str
) -> SegmentationNetwork:
    """Return the shared network (None) or that of a cluster, on the CPU in evaluation mode.

    Raises `UserError` where the arrays do not fit the settings of the checkpoint.
    """
    try:
        return network_of(saved.config, checkpoint_classes(saved, where), state.cluster_model(cluster))
    except ValueError as error:
        raise UserError(f"Checkpoint {where} does not fit its own settings ({error})") from None


def network_of(config: RunConfig, classes: ClassTable, model: Arrays) -> SegmentationNetwork:
    """Return a network of these arrays, on the CPU in evaluation mode; `ValueError` where they do not fit."""
    blank = config.network.model_copy(update={"weights": "random"})  # every array is replaced
    network = build_network(classes.num_classes, blank, config.seed)
    load_arrays(network, *split_flat(network, model))
    return network.eval()


class NetworkPredictor:
    """The shared network, that of one cluster, or per image that of the cluster of nearest style.

    ``images`` counts the images that each cluster's network segmented, where it is chosen per image.
    """

    def __init__(
        self,
        saved: Checkpoint,
        where: str,
        device: str = "auto",
        cluster: Cluster = "auto",
        site: str | None = None,
    ) -> None:
        refuse_site(saved, where, site)
        self.saved, self.where = saved, where
        self.classes = checkpoint_classes(saved, where)
        self.device = choose_device(device)
        self.state = read_state(saved, where)
        self.choice = choose_networks(self.state, cluster, where)
        self.images: Counter[int] = Counter()
        self._held: dict[int | None, SegmentationNetwork] = {}
        self._style = style_kind(saved.config.style)
        if self.choice != "nearest":
            self._network(self._fixed)  # arrays that do not fit are refused before a picture is read

    @property
    def named(self) -> bool:
        """Always: a network was trained with the classes of its run."""
        return True

    @property
    def legend(self) -> Legend:
        """The classes."""
        return truth_legend(self.classes)

    @property
    def _fixed(self) -> int | None:
        return self.choice if isinstance(self.choice, int) else None

    def _network(self, cluster: int | None) -> SegmentationNetwork:
        network = self._held.pop(cluster, None)
        if network is None:
            while len(self._held) >= HELD:
                self._held.pop(next(iter(self._held)))
            network = assemble_network(self.saved, self.state, cluster, self.where).to(self.device)
        self._held[cluster] = network  # the newest stands last
        return network

    def network_for(self, image: Bytes) -> SegmentationNetwork:
        """Return the network for an image; where style decides, the image is counted."""
        if self.choice != "nearest" or self.state.grouping is None:
            return self._network(self._fixed)
        cluster = self.state.grouping.nearest(extract_style(image, self._style))
        self.images[cluster] += 1
        return self._network(cluster)

    @torch.no_grad()
    def logits(self, image: Bytes, *, flip: bool = False) -> Tensor:
        """Return class scores [C, H, W]; with ``flip`` log-probabilities. See `Predictor`."""
        return predict_logits(self.network_for(image), image, self.saved.config.transforms, flip=flip)

    def labels(self, image: Bytes, *, flip: bool = False, crf: bool = False) -> Bytes:
        """Return classes; see `Predictor`. The CRF's unary is the network's negative log-probability."""
        logits = self.logits(image, flip=flip)
        if crf:
            return refine_logits(logits, image)
        return np.asarray(logits.argmax(dim=0).to(torch.uint8).cpu().numpy(), dtype=np.uint8)

    def notes(self) -> list[str]:
        """Return which networks segmented, where there is a choice."""
        if not self.state.clusters:
            return []
        if self.choice != "nearest":
            return ["the shared network" if self.choice == "global" else f"network of cluster {self.choice}"]
        shares = ", ".join(f"{cluster}: {count}" for cluster, count in sorted(self.images.items()))
        return [f"each by the network of the nearest style cluster ({shares or 'none yet'})"]

    def export(self, size: Size | None = None) -> Exported:
        """Return one network as one module, for images of ``size``; by default as they are scored.

        Where that is the size on disk, as training cut them. Raises `UserError` for the choice by style.
        """
        if self.choice == "nearest":
            raise UserError(
                f"--cluster auto was given, but {self.where} has {len(self.state.clusters)} style clusters and an ONNX "
                "file holds one network; give global or the number of one."
            )
        module = WholeNetwork(self._network(self._fixed), size or input_size(self.saved))
        described = described_model(
            self.saved, NETWORKS.facts(self.saved.config.network.architecture).identity, module.size
        )
        return module, described | {
            "cluster": str(self.choice),
            "classes": json.dumps(self.legend.as_json()),
        }


class WholeNetwork(Exportable):
    """Images fp32 [B, 3, H, W] in 0..1, RGB, of one size -> logits [B, C, H, W]; the class is the argmax over C."""

    output = "logits"

    def __init__(self, network: SegmentationNetwork, size: Size) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.network(images)
        return logits


def input_size(saved: Checkpoint) -> Size:
    """Return height and width of images as the settings say."""
    transforms = saved.config.transforms
    if transforms.eval_height:
        return transforms.eval_height, transforms.eval_width
    return transforms.height, transforms.width


class StudentPredictor(NetworkPredictor):
    """A whole network whose outputs are clusters, named where they were matched to classes.

    Neither the backbone of the first stage nor its file is needed.
    """

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
