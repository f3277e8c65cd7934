"""Weights of a backbone: where they come from, and whether they fit."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.models.backbone import prepare_torchvision

_log = logging.getLogger(__name__)

PROBE_SECONDS = 4.0
"""How long a server may take to answer before it counts as out of reach."""


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


def load_fitting(
    net: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, unused: Callable[[str], bool]
) -> None:
    """Load tensors whose names and shapes have to match those of ``net``.

    Args:
        net: the model, changed in place.
        tensors: what the file holds.
        source: how to call the file in messages.
        unused: names that the file may hold beyond the model's (a classifier, cut-off blocks).

    Raises:
        UserError: naming the first key that is missing, left over, or of another shape.
    """
    wanted = net.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # of no use in eval mode
    missing = [name for name in wanted if name not in tensors and name not in counters]
    extra = sorted(name for name in set(tensors) - set(wanted) if not unused(name))
    advice = "give the file of this very architecture, or correct model.backbone and model.depth"
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{source} does not fit: it lacks '{missing[0]}'{more}; {advice}.")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(f"{source} does not fit: the model has no '{extra[0]}'{more}; {advice}.")
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise UserError(
                f"{source} does not fit: '{name}' has shape {list(tensors[name].shape)}, "
                f"the model expects {list(tensor.shape)}; {advice}."
            )
    net.load_state_dict({name: tensors.get(name, tensor) for name, tensor in wanted.items()})


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


def timm_pretrained(name: str, create: Callable[..., nn.Module]) -> nn.Module:
    """Build a timm model with its pretrained weights, from the local cache where they lie there.

    timm and its hub retry for minutes without a network, so the hub is asked once beforehand.

    Args:
        name: the model's name, with or without tag.
        create: builds the model from the keyword arguments of `timm.create_model`.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    prepare_torchvision()
    from timm.models import get_pretrained_cfg

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
            return create(pretrained=True, pretrained_cfg_overlay={"file": cached})
    offline = bool(constants.HF_HUB_OFFLINE)
    server = constants.ENDPOINT if config.hf_hub_id else config.url
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
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not file.is_file() and not reachable(weights.url):
        raise offline_error("mobilenet_v2", setting)
    try:
        state: dict[str, torch.Tensor] = dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        _log.debug("download of mobilenet_v2 failed", exc_info=True)
        reason = f"mobilenet_v2 (the download failed with {type(error).__name__})"
        raise offline_error(reason, setting) from error
    return state
