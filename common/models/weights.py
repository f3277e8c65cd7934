"""Weights of a backbone or a network: where they come from, and whether they fit."""

from __future__ import annotations

import hashlib
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.checkpoint import MODEL, STATE, checkpoint_file
from common.errors import UserError
from common.models.backbone import prepare_torchvision

_log = logging.getLogger(__name__)

RANDOM, PRETRAINED = "random", "pretrained"
# how long a server may take to answer before it counts as out of reach
PROBE_SECONDS = 4.0


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; floating-point tensors become float32. `UserError` if it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"Weights file {path} is not a readable safetensors file ({error}); "
            "convert it with safetensors.torch.save_file or get it again."
        ) from None
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def check_fit(
    net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, needed: Iterable[str], advice: str
) -> None:
    """Raise `UserError`, with ``advice``, for the first array that is missing, left over, or of another shape.

    ``source`` is how to call the file, ``needed`` are the names that it has to hold.
    """
    wanted = net.state_dict()
    missing = [name for name in needed if name not in tensors]
    unknown = sorted(set(tensors) - set(wanted))
    for fault, names in (("it lacks", missing), ("the network has no", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{source} does not fit: {fault} '{names[0]}'{more}; {advice}.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{source} does not fit: '{name}' has shape {list(tensor.shape)}, the network expects "
                f"{list(wanted[name].shape)}; {advice}."
            )


def needed_names(net: nn.Module) -> list[str]:
    """Return the names of a state dict but for the counters of steps, which nothing reads in eval mode."""
    return [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]


def load_fitting(
    net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, unused: Callable[[str], bool]
) -> None:
    """Load tensors into ``net``, whose names and shapes have to be theirs; raises `UserError` as `check_fit`.

    ``unused`` says which names the file, called ``source``, may hold beyond the network's (a classifier, cut-off
    blocks).
    """
    state = net.state_dict()
    used = {name: tensor for name, tensor in tensors.items() if name in state or not unused(name)}
    advice = "give the file of this very architecture, or correct model.backbone and model.depth"
    check_fit(net, used, source, needed_names(net), advice)
    net.load_state_dict(state | used)


def offline_error(what: str, setting: str = "model.weights") -> UserError:
    """Return the one sentence for pretrained weights that are neither here nor within reach."""
    return UserError(
        f"The pretrained weights of {what} are not on this machine and their server cannot be reached; "
        f"set {setting} to a local safetensors file, or start once with a connection."
    )


def reachable(url: str) -> bool:
    """Tell within a few seconds whether a server answers at all (any HTTP status will do)."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def check_hash(file: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 does not begin with ``expected``; what is no hexadecimal number says nothing.

    Raises `UserError` before anything of the file is read as weights.
    """
    if not re.fullmatch("[0-9a-f]{8,64}", expected):
        return
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise UserError(
            f"Weights file {file} has sha256 {digest}, its name says {expected}: it is damaged or another; delete it, "
            "and it is downloaded anew."
        )


def timm_pretrained(name: str, create: Callable[..., nn.Module]) -> nn.Module:
    """Build a timm model with its pretrained weights, from the local cache where they lie there.

    Args:
        name: the model's name, with or without tag.
        create: builds the model from the keyword arguments of `timm.create_model`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    prepare_torchvision()
    from timm.models import get_pretrained_cfg, set_pretrained_check_hash

    set_pretrained_check_hash(True)
    try:
        config: Any = get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, its tag does not
        config = None
    if config is None or not config.has_weights:
        raise UserError(
            f"timm has no pretrained weights for '{name}'; "
            "choose a name with weights, or set model.weights to a safetensors file or 'random'."
        )
    if config.hf_hub_id and not config.hf_hub_filename:
        cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if isinstance(cached, str):
            # the hub names a large file by its SHA-256, and the name in the cache is a link to it
            check_hash(Path(cached).resolve(), Path(cached).resolve().name)
            return create(pretrained=True, pretrained_cfg_overlay={"file": cached})
    offline = bool(constants.HF_HUB_OFFLINE)
    server = constants.ENDPOINT if config.hf_hub_id else config.url
    # timm and its hub retry for minutes without a network, so the hub is asked once beforehand
    if offline or not reachable(server):
        raise offline_error(name)
    try:
        return create(pretrained=True)
    except (OSError, RuntimeError) as error:
        _log.debug("download of %s failed", name, exc_info=True)
        raise offline_error(f"{name} (the download failed with {type(error).__name__})") from error


def torchvision_pretrained(setting: str = "model.weights") -> dict[str, torch.Tensor]:
    """Return torchvision's ImageNet weights of MobileNetV2, from the local cache where they lie there.

    ``setting`` is what a user changes where they cannot be had.
    """
    prepare_torchvision()
    from torchvision.models import MobileNet_V2_Weights

    weights = MobileNet_V2_Weights.IMAGENET1K_V1
    # where torch keeps it: with the file there nobody has to be reached
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file() and not reachable(weights.url):
        raise offline_error("mobilenet_v2", setting)
    if file.is_file():  # torch itself checks only what it downloads
        check_hash(file, file.stem.rpartition("-")[2])
    try:
        found = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        state: dict[str, torch.Tensor] = dict(found)
    except (OSError, RuntimeError) as error:
        _log.debug("download of mobilenet_v2 failed", exc_info=True)
        reason = f"mobilenet_v2 (the download failed with {type(error).__name__})"
        raise offline_error(reason, setting) from error
    return state


def load_weights(model: nn.Module, weights: str, unused: str = "classifier.") -> None:
    """Load what ``weights`` names into a segmentation network that has its random weights.

    ``pretrained`` is torchvision's ImageNet backbone, ``random`` what the constructor drew. Otherwise files: a
    backbone in torchvision's names (``features.*``; a classifier beside it is not needed), a whole network in ours
    (``backbone.*``, ``head.*``; a checkpoint, or the folder of a run, is one), or several, later files over earlier
    ones. A head that no file holds stays random; a backbone has to come whole.

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
    advice = "give a file for this architecture and number of classes"
    if weights == PRETRAINED:
        tensors = _renamed(torchvision_pretrained("network.weights"), "torchvision's file", unused)
    else:
        for path in weights_paths(weights):
            found = _renamed(read_safetensors(path), f"Weights file {path}", unused)
            check_fit(model, found, f"Weights file {path}", (), advice)
            tensors |= found
    source = "torchvision's file" if weights == PRETRAINED else f"network.weights = '{weights}'"
    whole = any(
        name.startswith("head.") for name in tensors
    )  # of a head that no file holds nothing is missing
    needed = [name for name in needed_names(model) if whole or not name.startswith("head.")]
    check_fit(model, tensors, source, needed, "name a file that holds it as well")
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
