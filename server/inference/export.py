"""How does a checkpoint become an ONNX file that gives the same answers?"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.checkpoint import Checkpoint, load_checkpoint
from common.errors import UserError
from common.evaluation.clusters import backbone_maps
from common.evaluation.overlay import make_legend, truth_legend
from common.evaluation.protocol import check_backbone
from common.models.deeplab import DeepLab
from common.models.segmenter import Segmenter
from common.models.site_models import chosen_model, refuse_site
from common.seeds import torch_generator
from common.system.atomic import atomic_path
from server.inference.base import Cluster, Exportable, Exported, Size, need_classes, refuse_cluster
from server.inference.networks import assemble_network, choose_networks, read_state
from server.tasks.registry import task_of

if TYPE_CHECKING:
    from common.models.backbone import Backbone

TOLERANCE = 1e-3
"""Largest difference that is accepted between ONNX Runtime and torch, in multiples of the largest output, or of 1
where that is smaller (cosines)."""

AGREEMENT = 0.999
"""Smallest share of pixels that must get the same cluster or class."""


class WholeModel(Exportable):
    """Images fp32 [B, 3, H, W] in 0..1, RGB, of the configured size -> cosines [B, K, H, W].

    Normalisation is inside. The cluster of a pixel is the argmax over K.
    """

    output = "cosines"

    def __init__(self, backbone: Backbone, segmenter: Segmenter, size: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.segmenter, self.size = backbone, segmenter, size

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.segmenter.logits(backbone_maps(self.backbone, images), self.size)


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    *,
    cluster: Cluster = "global",
    site: str | None = None,
    size: Size | None = None,
    opset: int = 18,
) -> Path:
    """Write the whole model of a checkpoint, from pixels to scores, as one ONNX file and return its path.

    The file is run by ONNX Runtime on random images, one and two at a time, and compared with torch before it
    gets its name; a file that differs is never kept. Its metadata hold input size, names and colours of
    what each cluster or class stands for.

    Args:
        checkpoint: a ``round-NNNN.safetensors`` file or a run directory (its newest round).
        out: the file.
        cluster: "global" or a number: which network of a run with style clusters.
        site: whose own model, of a run whose sites do not share all.
        size: height and width of the images of a whole network, where not as `export_network.input_size` says.
        opset: of ONNX.

    Raises:
        UserError: onnx or onnxruntime is not installed, other weights, a size, a cluster or a site that cannot be,
            or the two disagree.
    """
    try:
        import onnx
        import onnxruntime

        importlib.import_module("onnxscript")  # torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"Export needs the package {error.name}, which is not installed; "
            "install the extra: pip install '.[export]'."
        ) from None
    saved = load_checkpoint(checkpoint)
    model, metadata = task_of(saved.config).export(saved, str(checkpoint), cluster, site, size)
    target = Path(out)
    example = torch.rand(2, 3, *model.size, generator=torch_generator(saved.config.seed, "export"))
    with atomic_path(target) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's notes on itself are nothing a user could act on
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["images"],
                output_names=[model.output],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        described = program.model_proto
        for key, value in metadata.items():
            described.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(described)
        temporary.write_bytes(described.SerializeToString())
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        for images in (example, example[:1]):
            _compare(model, session, images, target)
    return target


def export_clusters(
    saved: Checkpoint, where: str, cluster: Cluster, site: str | None, size: Size | None
) -> Exported:
    """Return backbone, head and centroids of a checkpoint as one module, and what the file says of them."""
    refuse_cluster(saved, where, cluster)
    if size is not None:
        raise UserError(
            f"--size was given, but {where} takes images of {saved.config.model.height} x {saved.config.model.width} "
            "pixels only; leave it out."
        )
    chosen = chosen_model(saved, where, site)
    return _whole_model(chosen, where), _metadata(chosen) | ({} if site is None else {"site": site})


def export_network(
    saved: Checkpoint, where: str, cluster: Cluster, site: str | None, size: Size | None
) -> Exported:
    """Return a network of a checkpoint as one module, and what the file says of it."""
    refuse_site(saved, where, site)
    network = whole_network(saved, where, cluster, size)
    return network, network_metadata(saved, where, cluster, network.size)


def _whole_model(saved: Checkpoint, where: str) -> WholeModel:
    from common.models.backbone import load_backbone

    settings = saved.config.model
    backbone = load_backbone(settings, saved.config.seed, "cpu")
    check_backbone(saved, backbone.weights_hash, backbone.channels, where)
    model = WholeModel(backbone, Segmenter.from_checkpoint(saved), (settings.height, settings.width))
    return model.eval()


def _metadata(saved: Checkpoint) -> dict[str, str]:
    legend = make_legend(len(saved.centroids), saved.classes, saved.mapping)
    entries = legend.as_json()
    settings = saved.config.model
    return {
        "run": saved.config.name,
        "round": str(saved.round),
        "backbone": settings.backbone,
        "input": json.dumps(
            {"height": settings.height, "width": settings.width, "range": [0, 1], "order": "RGB"}
        ),
        "clusters": json.dumps([entries[int(index)] for index in legend.of_cluster]),
    }


@torch.no_grad()
def _compare(model: Exportable, session: Any, images: Tensor, target: Path) -> None:
    """Raise `UserError` where ONNX Runtime and torch do not say the same."""
    expected = model(images).numpy()
    (given,) = session.run([model.output], {"images": images.numpy()})
    difference = float(np.abs(given - expected).max() / max(1.0, float(np.abs(expected).max())))
    same = float((given.argmax(axis=1) == expected.argmax(axis=1)).mean())
    if not (difference <= TOLERANCE and same >= AGREEMENT):
        raise UserError(
            f"The ONNX file does not agree with torch ({model.output} differ by up to {difference:.2g}, "
            f"{100 * same:.2f} % of pixels get the same argmax), so {target} was not written; "
            "try another version of onnxruntime."
        )


class WholeNetwork(Exportable):
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
