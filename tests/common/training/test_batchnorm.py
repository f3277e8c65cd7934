"""Are a site's statistics what its whole images give, layer by layer, and does the network go just so far along?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.data.manifest import read_shard
from common.errors import UserError
from common.models.network import PooledNorm, build_network
from common.models.networks.deeplab import DeepLab
from common.models.parameter_groups import parameter_keys, statistics_keys
from common.settings.network import Network, Transforms
from common.training.batchnorm import BATCH, blend_statistics, whole_images
from tests.support.small_network import small_network

TRANSFORMS = Transforms(eval_height=48, eval_width=64)


@pytest.fixture(scope="module")
def network() -> Iterator[DeepLab]:
    with small_network():
        yield build_network(5, Network(weights="random", output_stride=16), 3)


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(4, 3, 64, 96, generator=generator) for _ in range(count)]


def two_layers() -> nn.Sequential:
    torch.manual_seed(2)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    )
    for norm in (layers[1], layers[4]):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight)
    return layers


@torch.no_grad()
def by_hand(layers: nn.Sequential, images: list[torch.Tensor], share: float) -> list[np.ndarray]:
    """Return means and variances of both batch norms: batch after batch, channel after channel, in NumPy."""
    found = []
    for place in (1, 4):
        norm = layers[place]
        assert isinstance(norm, nn.BatchNorm2d)
        means, variances = [], []
        for x in images:
            for layer in layers[:place]:
                if isinstance(layer, nn.BatchNorm2d):  # normalised by the batch itself
                    mean = x.mean((0, 2, 3), keepdim=True)
                    spread = (x - mean).square().mean((0, 2, 3), keepdim=True)
                    x = (x - mean) / (spread + layer.eps).sqrt()
                    x = x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
                else:
                    x = layer(x)
            rows = x.transpose(0, 1).flatten(1).double().numpy()
            means.append([row.mean() for row in rows])
            variances.append([row.var(ddof=1) for row in rows])
        assert norm.running_mean is not None and norm.running_var is not None
        found.append((1 - share) * norm.running_mean.numpy() + share * np.mean(means, axis=0))
        found.append((1 - share) * norm.running_var.numpy() + share * np.mean(variances, axis=0))
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_statistics_are_those_of_a_slow_loop(share: float) -> None:
    layers = two_layers()
    wanted = by_hand(copy.deepcopy(layers), batches(), share)
    blend_statistics(layers, batches(), share)
    found = [getattr(layers[place], name) for place in (1, 4) for name in ("running_mean", "running_var")]
    for one, other in zip(found, wanted, strict=True):
        assert np.allclose(one.numpy(), other, rtol=1e-4, atol=1e-5)


def test_nothing_but_statistics_changes_and_training_goes_on_as_before(network: DeepLab) -> None:
    before, blended = network.state_dict(), copy.deepcopy(network)
    blend_statistics(blended, batches(), 0.5)
    after = blended.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in parameter_keys(network))
    assert not any(torch.equal(before[key], after[key]) for key in statistics_keys(network))
    momenta = [[m.momentum for m in n.modules() if isinstance(m, nn.BatchNorm2d)] for n in (network, blended)]
    assert momenta[0] == momenta[1]
    assert not any(module.training for module in blended.modules())


def test_a_layer_that_saw_nothing_stays_as_it_is(network: DeepLab) -> None:
    """A batch of one image has one value per channel behind global pooling, and no variance."""
    blended = copy.deepcopy(network)
    blend_statistics(blended, [batches(1)[0][:1]], 1.0)
    before, after = network.state_dict(), blended.state_dict()
    same = [key for key in statistics_keys(network) if torch.equal(before[key], after[key])]
    assert len(same) == 2  # mean and variance of one layer
    assert all(torch.isfinite(value).all() for value in after.values())

    other = copy.deepcopy(network)
    (pooled,) = (module for module in other.modules() if isinstance(module, PooledNorm))
    assert pooled.running_mean is not None
    pooled.running_mean.sub_(5.0)
    blend_statistics(other, [batches(1)[0][:1]], 1.0)
    keys = statistics_keys(network) - set(same)
    assert any(not torch.equal(after[key], other.state_dict()[key]) for key in keys), "what it knew is used"


def test_batches_hold_every_image_once_whole_and_spread_over_the_shard(scenes: Path) -> None:
    shard = read_shard(scenes / "site-0.jsonl")
    found = list(whole_images(shard, TRANSFORMS))
    assert len(shard) == 10 and BATCH == 8
    assert [tuple(batch.shape) for batch in found] == [(5, 3, 48, 64), (5, 3, 48, 64)]
    alone = [next(whole_images(replace(shard, entries=(entry,)), TRANSFORMS))[0] for entry in shard.entries]
    for first, batch in enumerate(found):
        assert torch.equal(batch, torch.stack(alone[first::2]))
    assert min(batch.min() for batch in found) >= 0 and 0.5 < max(batch.max() for batch in found) <= 1


def test_images_of_several_sizes_want_one(tmp_path: Path) -> None:
    from PIL import Image

    for index, size in enumerate(((40, 30), (50, 30))):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    manifest = tmp_path / "mixed.jsonl"
    manifest.write_text("".join(f'{{"image": "{index}.png"}}\n' for index in range(2)))
    with pytest.raises(UserError, match=r"mixed has images of several sizes.*transforms.eval-height"):
        list(whole_images(read_shard(manifest, tmp_path), Transforms()))
