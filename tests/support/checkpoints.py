"""Untrained models on disk that see several clusters or classes in any picture.

One of frozen features (random backbone, head and centroids), one of a whole network, with or without networks of
style clusters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from common.data.classes import ClassTable, load_table
from common.evaluation.clusters import backbone_maps
from common.models.backbone import Backbone, load_backbone
from common.models.head import SegmentationHead, build_head, init_centroids, state_to_numpy
from common.models.network import build_network, network_signature, network_to_arrays
from common.models.networks.deeplab import DeepLab
from common.settings.load import load_config
from common.styles.clusters import StyleClusters
from common.styles.style import extract_style
from server.states import NetworkState

SYNTHETIC = load_table("synthetic")


def write_checkpoint(
    run_dir: Path,
    classes: ClassTable | None = None,
    mapping: list[int] | None = None,
    weights_hash: str | None = None,
    sites: int = 0,
    **settings: object,
) -> Path:
    """Write round 1 of a run and return the path of its arrays.

    With ``sites`` the model is not shared: the sites a, b and so on have a head and centroids of their own, and what
    stands in the place of the shared ones is all alike.
    """
    given: dict[str, object] = {
        "name": "tiny",
        "model.weights": "random",
        "model.height": 65,
        "model.width": 97,
        "model.clusters": 6,
        "model.dim": 8,
        **({"centroids.share": "none"} if sites else {}),
        **settings,
    }
    config = load_config(given)
    backbone = load_backbone(config.model, config.seed, "cpu")
    head = _centred_head(backbone, build_head(backbone.channels, config.model, seed=1))
    centroids = init_centroids(config.model.clusters, config.model.dim, seed=2)
    extra: dict[str, np.ndarray] = {}
    for index in range(sites):
        own = _centred_head(backbone, build_head(backbone.channels, config.model, seed=10 + index))
        prefix = f"site/{chr(ord('a') + index)}"
        extra |= {f"{prefix}/head/{key}": value for key, value in own.items()}
        extra[f"{prefix}/centroids/centroids"] = np.roll(centroids, index + 1, axis=0)
    if sites:
        head, centroids = {key: 0 * value for key, value in head.items()}, np.ones_like(centroids)
    path = checkpoint_path(run_dir, 1)
    checkpoint = Checkpoint(
        round=1,
        head=head,
        centroids=centroids,
        config=config,
        classes=classes,
        weights_hash=backbone.weights_hash if weights_hash is None else weights_hash,
        channels=backbone.channels,
        grid=backbone.grid,
        mapping=mapping,
        extra=extra,
    )
    save_checkpoint(path, checkpoint)
    return path


def _centred_head(backbone: Backbone, head: SegmentationHead) -> dict[str, np.ndarray]:
    """Shift the codes to mean 0: a random backbone says nearly the same of every patch."""
    size = (1, 3, *backbone.size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(3))
    code = head.eval()(backbone_maps(backbone, noise.cumsum(-1) / noise.sum(-1, keepdim=True)))
    head.linear.bias.data -= code.detach().mean(dim=(0, 2, 3))
    return state_to_numpy(head)


LAST = ("head.4.weight", "head.4.bias")
"""The classifier of a network: the names that the clusters below have for themselves."""


def write_network_checkpoint(
    run_dir: Path,
    classes: ClassTable | None = SYNTHETIC,
    *,
    clusters: bool = False,
    mapping: bool = True,
    **settings: object,
) -> Path:
    """Write round 1 of a run of task `supervised` and return the path of its arrays.

    With ``clusters`` there are two: 0 for dark pictures, which has the shared classifier, and 1 for bright ones,
    whose classes come in reverse order.
    """
    given: dict[str, object] = {
        "name": "net",
        "task": "supervised",
        "network.weights": "random",
        "transforms.height": 64,
        "transforms.width": 96,
        "style.height": 64,
        "style.width": 64,
        **settings,
    }
    if clusters:
        given["clusters.layers"] = "decoder"
    config = load_config(given)
    number = 2 if classes is None else classes.num_classes
    network = build_network(number, config.network, config.seed)
    _centre_logits(network)
    weights, statistics = network_to_arrays(network)
    state = NetworkState(weights | statistics)
    if clusters:
        style = config.style.model_copy(update={"transfer": "fourier"})
        grey = [extract_style(np.full((64, 64, 3), value, dtype=np.uint8), style) for value in (60, 200)]
        grouping = StyleClusters(
            np.stack(grey).reshape(2, -1).astype(np.float64), {"site-0": 0, "site-1": 1}, {2: 0.5}
        )
        own = {key: state.model[key] for key in LAST}
        turned = {key: np.ascontiguousarray(value[::-1]) for key, value in own.items()}
        state = NetworkState(state.model, clusters={0: own, 1: turned}, grouping=grouping)
    path = checkpoint_path(run_dir, 1)
    checkpoint = Checkpoint(
        round=1,
        head=state.model,
        centroids=np.zeros((0, 0), dtype=np.float32),
        config=config,
        classes=classes,
        weights_hash=network_signature(number, config.network),
        channels=number,
        grid=(64, 96),
        mapping=list(range(number)) if mapping else None,
        extra=state.to_extra(),
    )
    save_checkpoint(path, checkpoint)
    return path


@torch.no_grad()
def _centre_logits(network: DeepLab) -> None:
    """Give every class the same mean and spread on noise: an untrained network says one class of everything."""
    noise = torch.rand((2, 3, 128, 192), generator=torch.Generator().manual_seed(3))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # running statistics become those of the next batch
    network.seed_dropout(0)
    network.train()(noise)
    logits = network.eval()(noise)
    classifier = network.head[-1]
    assert isinstance(classifier, torch.nn.Conv2d)
    assert classifier.bias is not None
    scale = 1 / logits.std(dim=(0, 2, 3))
    classifier.bias.sub_(logits.mean(dim=(0, 2, 3))).mul_(scale)
    classifier.weight.mul_(scale.view(-1, 1, 1, 1))
