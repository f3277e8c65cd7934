"""Starting weights of a segmentation network.

``pretrained`` is torchvision's ImageNet backbone, ``random`` what the constructor drew. Otherwise files: a
backbone in torchvision's names (``features.*``; a classifier beside it is not needed), a whole network in ours
(``backbone.*``, ``head.*``; a checkpoint, or the folder of a run, is one), or several, later files over earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.checkpoint import MODEL, STATE, checkpoint_file
from common.errors import UserError
from common.models.weights import read_safetensors, torchvision_pretrained

RANDOM, PRETRAINED = "random", "pretrained"


def load_weights(model: nn.Module, weights: str, unused: str = "classifier.") -> None:
    """Load what ``weights`` names into a network that has its random weights.

    A head that no file holds stays random; a backbone has to come whole.

    Args:
        model: a network with ``backbone.*`` and ``head.*``, changed in place.
        weights: 'random', 'pretrained', or paths of safetensors files separated by commas.
        unused: how the names start, in torchvision's files, that the network does without beside the classifier.

    Raises:
        UserError: naming the file or array that is missing, unknown or of another shape.
    """
    if weights == RANDOM:
        return
    tensors: dict[str, torch.Tensor] = {}
    if weights == PRETRAINED:
        tensors = _renamed(torchvision_pretrained("network.weights"), "torchvision's file", unused)
    else:
        for path in weights_paths(weights):
            found = _renamed(read_safetensors(path), f"Weights file {path}", unused)
            _check_shapes(model, found, f"Weights file {path}")
            tensors |= found
    source = "torchvision's file" if weights == PRETRAINED else f"network.weights = '{weights}'"
    _check_shapes(model, tensors, source)
    _check_complete(model, tensors, source)
    model.load_state_dict(model.state_dict() | tensors)


def weights_paths(weights: str) -> list[Path]:
    """Return the files that ``weights`` names; `UserError` where one does not exist."""
    paths = [checkpoint_file(Path(part.strip()).expanduser()) for part in weights.split(",") if part.strip()]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"Weights file {path} does not exist (looked from {Path.cwd()}); set network.weights to "
                "'pretrained', 'random' or paths of safetensors files separated by commas."
            )
    if not paths:
        raise UserError(
            f"network.weights is {weights!r}, which names no file; set it to 'pretrained', 'random' or paths."
        )
    return paths


def _renamed(tensors: Mapping[str, torch.Tensor], source: str, unused: str) -> dict[str, torch.Tensor]:
    """Give torchvision's names of the backbone ours, leave out what is not used; of a run keep the network."""
    ours: dict[str, torch.Tensor] = {}
    for stored, tensor in tensors.items():
        if stored.startswith((*STATE, unused)):
            continue
        name = stored.removeprefix(MODEL)
        group, _, rest = name.partition(".")
        if group == "features":
            ours[f"backbone.{rest}"] = tensor
        elif group in ("backbone", "head"):
            ours[name] = tensor
        elif group != "classifier":
            raise UserError(
                f"{source} does not fit: it holds '{name}'; expected a MobileNetV2 in torchvision's names or a "
                "network saved by this project."
            )
    return ours


def _check_shapes(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    wanted = model.state_dict()
    for name, tensor in tensors.items():
        if name not in wanted:
            raise UserError(f"{source} does not fit: the network has no '{name}'; give another file.")
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{source} does not fit: '{name}' has shape {list(tensor.shape)}, the network expects "
                f"{list(wanted[name].shape)}; give a file for this architecture and number of classes."
            )


def _check_complete(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Insist on the whole backbone, and on the whole head where there is any of it."""
    needed = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    if not any(name.startswith("head.") for name in tensors):
        needed = [name for name in needed if not name.startswith("head.")]
    missing = [name for name in needed if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{source} does not fit: it lacks '{missing[0]}'{more}; name a file that holds it as well."
        )
