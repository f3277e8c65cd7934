"""Does every array of the network belong to the scopes that it should, by the type of its module?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.models import parameter_groups as scopes
from common.models.network import build_network
from common.models.networks.deeplab import DeepLab
from common.settings.network import Network


@pytest.fixture(scope="module")
def model() -> DeepLab:
    """A network that no test changes."""
    return build_network(16, Network(weights="random"), 0)


def everything(model: nn.Module) -> frozenset[str]:
    """All that may travel."""
    return frozenset(name for name in model.state_dict() if not name.endswith("num_batches_tracked"))


def test_scopes_cut_the_network_into_disjoint_parts(model: DeepLab) -> None:
    parts = [scopes.batchnorm_keys(model), scopes.encoder_keys(model), scopes.decoder_keys(model)]
    assert frozenset[str]().union(*parts) == everything(model)
    assert sum(map(len, parts)) == len(everything(model)) == 179 + 118


def test_scopes_have_the_published_sizes(model: DeepLab) -> None:
    decoder = scopes.decoder_keys(model)
    assert len(decoder) == 9, "8 convolutions, one of them with a bias"
    assert sum(model.state_dict()[key].numel() for key in decoder) == 10_424_336
    assert len(scopes.encoder_keys(model)) == 52
    assert len(scopes.batchnorm_keys(model)) == 59 * 4
    assert len(scopes.statistics_keys(model)) == 59 * 2


def test_names_do_not_decide() -> None:
    """A convolution called 'bn' is none, a batch norm called 'conv' is one."""
    odd = nn.Module()
    odd.backbone = nn.ModuleDict({"bn": nn.Conv2d(1, 2, 1), "conv": nn.BatchNorm2d(2)})
    odd.head = nn.ModuleDict({"bn1": nn.Conv2d(2, 1, 1)})
    assert scopes.batchnorm_keys(odd) == {
        f"backbone.conv.{n}" for n in ("weight", "bias", "running_mean", "running_var")
    }
    assert scopes.encoder_keys(odd) == {"backbone.bn.weight", "backbone.bn.bias"}
    assert scopes.decoder_keys(odd) == {"head.bn1.weight", "head.bn1.bias"}


def test_cluster_layers(model: DeepLab) -> None:
    bn, encoder, decoder = (
        scopes.batchnorm_keys(model),
        scopes.encoder_keys(model),
        scopes.decoder_keys(model),
    )
    expected = {
        "none": frozenset[str](),
        "bn": bn,
        "encoder": encoder,
        "decoder": decoder,
        "all": everything(model),
        "bn+encoder": bn | encoder,
        "bn+decoder": bn | decoder,
        "all-stats": everything(model) - scopes.statistics_keys(model),
    }
    for layers, keys in expected.items():
        assert scopes.cluster_keys(model, layers) == keys, layers
    with pytest.raises(ValueError, match=r"'head' are unknown; see clusters\.layers"):
        scopes.cluster_keys(model, "head")


def test_a_flat_network_is_cut_into_parameters_and_statistics(model: DeepLab) -> None:
    flat = {key: np.zeros(1) for key in everything(model)}
    parameters, statistics = scopes.split_flat(model, flat)
    assert parameters.keys() == scopes.parameter_keys(model) and statistics.keys() == scopes.statistics_keys(
        model
    )


def test_what_a_site_keeps(model: DeepLab) -> None:
    assert scopes.site_keys(model, "shared") == frozenset()
    assert scopes.site_keys(model, "local-statistics") == scopes.statistics_keys(model)
    assert scopes.site_keys(model, "local") == scopes.batchnorm_keys(model)
    with pytest.raises(ValueError, match="'silo' are unknown"):
        scopes.site_keys(model, "silo")


def test_what_freezing_names(model: DeepLab) -> None:
    parameters = scopes.parameter_keys(model)
    encoder, decoder, norms = (
        scopes.frozen_parameters(model, f) for f in ("encoder", "decoder", "batchnorm")
    )
    assert scopes.frozen_parameters(model, "none") == frozenset()
    assert encoder == {key for key in parameters if key.startswith("backbone.")}
    assert encoder | decoder == parameters and not encoder & decoder
    assert norms == scopes.batchnorm_keys(model) & parameters
    with pytest.raises(ValueError, match="nothing called 'head' to freeze"):
        scopes.frozen_parameters(model, "head")


@pytest.mark.parametrize("freeze", ["none", "encoder", "decoder", "batchnorm"])
def test_a_frozen_part_keeps_its_statistics_and_asks_for_no_gradient(freeze: str) -> None:
    model = build_network(3, Network(weights="random"), 0)
    model.seed_dropout(0)
    scopes.start_training(model, "encoder")  # an earlier choice leaves no trace
    scopes.start_training(model, freeze)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    frozen = scopes.frozen_parameters(model, freeze)
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen
    for key in scopes.statistics_keys(model):
        module = key.rpartition(".")[0]
        moved = not torch.equal(before[key], model.state_dict()[key])
        assert moved is (f"{module}.weight" not in frozen), key
