"""What of a whole network goes into an ONNX file?"""

from __future__ import annotations

import json

from torch import Tensor, nn

from common.checkpoint import Checkpoint
from common.errors import UserError
from common.models.deeplab import DeepLab
from common.overlay import truth_legend
from server.network_predictor import assemble_network, choose_networks, read_state
from server.predictor import Cluster, need_classes

Size = tuple[int, int]


class WholeNetwork(nn.Module):
    """Images fp32 [B, 3, H, W] in 0..1, RGB, of one size -> logits [B, C, H, W]; the class is the argmax over C."""

    output = "logits"

    def __init__(self, network: DeepLab, size: Size) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.network(images)
        return logits


def whole_network(
    saved: Checkpoint, where: str, cluster: Cluster = "global", size: Size | None = None
) -> WholeNetwork:
    """Return the shared network, or a cluster's, for images of ``size`` (height, width).

    By default images enter as they are scored; where that is the size on disk, as training cut them.
    Raises `UserError` for a cluster that the checkpoint does not have, or the choice by style.
    """
    state = read_state(saved, where)
    choice = choose_networks(state, cluster, where)
    if choice == "nearest":
        raise UserError(
            f"--cluster auto was given, but {where} has {len(state.clusters)} style clusters and an ONNX file holds "
            "one network; give global or the number of one."
        )
    network = assemble_network(saved, state, choice if isinstance(choice, int) else None, where)
    return WholeNetwork(network, size or input_size(saved))


def input_size(saved: Checkpoint) -> Size:
    """Return height and width of images as the settings say."""
    transforms = saved.config.transforms
    if transforms.eval_height:
        return transforms.eval_height, transforms.eval_width
    return transforms.height, transforms.width


def network_metadata(saved: Checkpoint, where: str, cluster: Cluster, size: Size) -> dict[str, str]:
    """Return what the file says of itself: run, input, and names and colours of the outputs."""
    return {
        "run": saved.config.name,
        "round": str(saved.round),
        "backbone": "deeplabv3-mobilenet-v2",
        "cluster": str(cluster),
        "input": json.dumps({"height": size[0], "width": size[1], "range": [0, 1], "order": "RGB"}),
        "classes": json.dumps(truth_legend(need_classes(saved, where)).as_json()),
    }
