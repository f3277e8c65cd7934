"""Groups of a network's arrays: batch norms, encoder, decoder, those of a cluster or a site.

Chosen by the type of the module that holds them, never by name: the batch norms of MobileNetV2 are called
``backbone.4.conv.1.1``. All keys are names of the state dict. ``num_batches_tracked`` is in no scope:
it counts steps, and nothing reads it at a fixed momentum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Keys = frozenset[str]

# not ``num_batches_tracked``: at a fixed momentum nothing reads it
_STATISTICS = ("running_mean", "running_var")


def parameter_keys(model: nn.Module) -> Keys:
    """Return the names of everything that gradients move."""
    return frozenset(name for name, _ in model.named_parameters())


def statistics_keys(model: nn.Module) -> Keys:
    """Return the names of all running means and variances."""
    return frozenset(
        f"{name}.{statistic}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for statistic in _STATISTICS
    )


def batchnorm_keys(model: nn.Module) -> Keys:
    """Return scale, shift and running statistics of all batch norms."""
    return statistics_keys(model) | _own_parameters(model, "", lambda m: isinstance(m, _BatchNorm))


def encoder_keys(model: nn.Module) -> Keys:
    """Return weights and biases of the backbone's convolutions; its batch norms are not among them."""
    return _own_parameters(model, "backbone.", lambda m: isinstance(m, nn.Conv2d))


def decoder_keys(model: nn.Module) -> Keys:
    """Return weights and biases of the head's convolutions; its batch norms are not among them."""
    return _own_parameters(model, "head.", lambda m: isinstance(m, nn.Conv2d))


def cluster_keys(model: nn.Module, layers: str) -> Keys:
    """Return what each cluster of sites has for itself.

    Args:
        model: the network.
        layers: as in `common.settings.network.Clusters`: "none", "all" (statistics included), "all-stats"
            (all but the statistics), or any of "bn", "encoder", "decoder" joined by "+".

    Raises ValueError for other layers.
    """
    if layers == "none":
        return frozenset()
    if layers == "all":
        return parameter_keys(model) | statistics_keys(model)
    if layers == "all-stats":
        return parameter_keys(model)
    scopes = {"bn": batchnorm_keys, "encoder": encoder_keys, "decoder": decoder_keys}
    try:
        return frozenset[str]().union(*(scopes[part](model) for part in layers.split("+")))
    except KeyError:
        raise ValueError(f"Layers {layers!r} are unknown; see clusters.layers.") from None


def site_keys(model: nn.Module, batchnorm: str) -> Keys:
    """Return what a site keeps to itself: nothing, statistics (SiloBN) or whole batch norms (FedBN).

    ``batchnorm`` is "shared", "local-statistics" or "local", as in `common.settings.network.Network`;
    ValueError for anything else. SiloBN: Andreux et al., 2020. FedBN: Li et al., 2021.
    """
    if batchnorm == "shared":
        return frozenset()
    if batchnorm == "local-statistics":
        return statistics_keys(model)
    if batchnorm == "local":
        return batchnorm_keys(model)
    raise ValueError(f"Batch norms {batchnorm!r} are unknown; see network.batchnorm.")


def frozen_parameters(model: nn.Module, freeze: str) -> Keys:
    """Return the parameters that training leaves as received.

    ``freeze`` is "none", "encoder" (the whole backbone, batch norms included), "decoder" (the whole head) or
    "batchnorm" (scale and shift, of both); ValueError for anything else.
    """
    return frozenset(
        f"{name}.{own}" for name, m in _frozen(model, freeze) for own, _ in m.named_parameters(recurse=False)
    )


def start_training(model: nn.Module, freeze: str) -> None:
    """Put the network into training mode, all but what ``freeze`` names; frozen batch norms evaluate."""
    frozen = frozen_parameters(model, freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.train()
    for _, module in _frozen(model, freeze):
        if isinstance(module, _BatchNorm):
            # normalise by the running statistics and leave them alone: what stays as received has to compute what
            # it did
            module.eval()


def _frozen(model: nn.Module, freeze: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that ``freeze`` names, with their names."""
    tests: dict[str, Callable[[str, nn.Module], bool]] = {
        "none": lambda _name, _module: False,
        "encoder": lambda name, _module: name.startswith("backbone."),
        "decoder": lambda name, _module: name.startswith("head."),
        "batchnorm": lambda _name, module: isinstance(module, _BatchNorm),
    }
    if freeze not in tests:
        raise ValueError(f"There is nothing called {freeze!r} to freeze; see network.freeze.")
    return ((name, module) for name, module in model.named_modules() if tests[freeze](name, module))


def _own_parameters(model: nn.Module, prefix: str, wanted: Callable[[nn.Module], bool]) -> Keys:
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if name.startswith(prefix) and wanted(module)
        for own, _ in module.named_parameters(recurse=False)
    )


def split_flat(
    model: nn.Module, flat: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Cut a network's arrays, flat by name, into parameters and running statistics."""
    statistics = statistics_keys(model)
    return (
        {key: array for key, array in flat.items() if key not in statistics},
        {key: array for key, array in flat.items() if key in statistics},
    )
