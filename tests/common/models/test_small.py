"""Does the small network see pictures of any size, start from published weights, and stay small?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.models.backbone import prepare_torchvision
from common.models.network import NETWORKS, build_network, load_arrays, network_signature, network_to_arrays
from common.models.networks.deeplab import DeepLab
from common.models.networks.small import SmallNetwork
from common.settings.network import Network

SMALL = Network(architecture="small", weights="random")


def network(classes: int = 5, seed: int = 0) -> SmallNetwork:
    built = build_network(classes, SMALL, seed)
    assert isinstance(built, SmallNetwork)
    return built


def test_the_taps_are_the_blocks_where_strides_end() -> None:
    built = network()
    assert built.taps == [6, 13, 17]
    assert [reduce[0].weight.shape[:2] for reduce in built.head.reduce] == [(48, 32), (96, 96), (128, 320)]  # type: ignore[union-attr,index]


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (45, 131)])
def test_any_size_comes_back_at_its_own_size(size: tuple[int, int]) -> None:
    built = network().eval()
    with torch.no_grad():
        found = built(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert found.shape == (2, 5, *size)
    assert found.dtype == torch.float32


def test_it_stays_below_25_megabytes() -> None:
    weights, statistics = network_to_arrays(network(254))
    assert sum(array.nbytes for array in (weights | statistics).values()) < 10e6


def test_all_parameters_learn() -> None:
    built = network().train()
    built(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in built.named_parameters() if p.grad is None] == []


def test_torchvision_weights_fit_without_the_last_convolution(tmp_path: Path) -> None:
    prepare_torchvision()
    from torchvision.models import mobilenet_v2

    torch.manual_seed(3)
    published = mobilenet_v2(weights=None)
    file = tmp_path / "mobilenet.safetensors"
    save_file({k: v.clone() for k, v in published.state_dict().items() if v.is_floating_point()}, file)
    built = build_network(5, SMALL.model_copy(update={"weights": str(file)}), 0)
    assert isinstance(built.backbone, torch.nn.Sequential)
    assert torch.equal(built.backbone[17].conv[2].weight, published.features[17].conv[2].weight)  # type: ignore[union-attr,operator,index]


def test_its_own_file_starts_it_and_another_networks_does_not(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(
        {k: v.contiguous() for k, v in network(seed=4).state_dict().items() if v.is_floating_point()}, file
    )
    again = build_network(5, SMALL.model_copy(update={"weights": str(file)}), 0)
    assert torch.equal(again.state_dict()["head.classify.weight"], network(seed=4).head.classify.weight)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="does not fit"):
        build_network(5, Network(weights=str(file)), 0)


def test_arrays_travel_and_come_back() -> None:
    one, other = network(seed=1), network(seed=2)
    load_arrays(other, *network_to_arrays(one))
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(one.eval()(images), other.eval()(images))


def test_signatures_tell_architectures_and_classes_apart() -> None:
    given = [(5, SMALL), (6, SMALL), (5, Network()), (5, SMALL.model_copy(update={"normalize": "half"}))]
    assert len({network_signature(classes, settings) for classes, settings in given}) == len(given)


def test_deeplab_is_what_nobody_chose_and_unknown_names_are_refused() -> None:
    assert isinstance(build_network(3, Network(weights="random"), 0), DeepLab)
    assert {"deeplab", "small"} <= set(NETWORKS.names())
    with pytest.raises(UserError, match="smal"):
        build_network(3, Network(architecture="smal", weights="random"), 0)
