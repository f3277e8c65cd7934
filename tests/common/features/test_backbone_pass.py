"""Does the backbone's pass give the same features however little room a GPU has, and in either arithmetic?"""

from __future__ import annotations

import logging

import pytest
import torch

from common.errors import UserError
from common.features.cache import GPU_BATCH, BackbonePass
from common.features.store import in_float16
from common.models.backbone import Backbone, load_backbone
from common.settings.unsupervised import Cache, Model

MODEL = Model(backbone="test_vit", weights="random", depth=1, height=32, width=48, clusters=4, dim=8)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(MODEL, 0, "cpu")


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(7, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Crowded(BackbonePass):
    """A GPU with room for ``room`` pictures at once (the CPU in disguise)."""

    def __init__(self, backbone: Backbone, room: int) -> None:
        super().__init__(backbone, torch.device("cpu"))
        self.batch, self.room = GPU_BATCH, room
        self.sizes: list[int] = []

        def crowded(images: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(images))
            if len(images) > self.room:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nDetails")
            return backbone(images)

        self.backbone = crowded  # type: ignore[assignment]


def test_a_gpu_out_of_memory_goes_on_with_fewer_pictures(
    backbone: Backbone, pictures: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    crowded = Crowded(backbone, room=3)
    with caplog.at_level(logging.WARNING):
        found = crowded(pictures)
    assert crowded.sizes == [7, 7, 4, 2, 2, 2, 1]  # of at most 16, 8, 4 and then 2
    assert crowded.batch == 2 and "going on with 2 images at once" in caplog.text
    torch.testing.assert_close(found, backbone(pictures), rtol=0, atol=1e-5)
    crowded(pictures)
    assert crowded.sizes[7:] == [2, 2, 2, 1]  # it does not try again what did not fit


def test_a_gpu_without_room_for_one_picture_is_one_sentence(
    backbone: Backbone, pictures: torch.Tensor
) -> None:
    crowded = Crowded(backbone, room=0)
    with pytest.raises(UserError, match=r"no room for .* single picture \(CUDA out of .* gpu-share") as found:
        crowded(pictures)
    assert "\n" not in str(found.value)
    assert crowded.sizes[-1] == 1


def test_other_errors_are_not_taken_for_want_of_memory(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="expected pictures"):
        BackbonePass(backbone, torch.device("cpu"))(torch.zeros(2, 3, 8, 8))


def test_float16_is_for_cuda_and_on_request() -> None:
    cuda, cpu = torch.device("cuda:1"), torch.device("cpu")
    wanted = Cache(mixed_precision=True)
    assert in_float16(wanted, cuda)
    assert not in_float16(wanted, cpu) and not in_float16(Cache(), cuda)


def test_float16_arithmetic_gives_nearly_the_same_features_as_float32(
    backbone: Backbone, pictures: torch.Tensor
) -> None:
    full = BackbonePass(backbone, torch.device("cpu"))(pictures)
    half = BackbonePass(backbone, torch.device("cpu"), float16=True)(pictures)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).norm() / full.norm() < 5e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("float16", "tolerance"), [(False, 5e-3), (True, 1e-2)])  # convolutions use TF32
def test_features_of_cuda_are_those_of_the_cpu(
    backbone: Backbone, pictures: torch.Tensor, float16: bool, tolerance: float
) -> None:
    cuda = torch.device("cuda")
    found = BackbonePass(load_backbone(MODEL, 0, cuda), cuda, float16)(pictures)
    expected = backbone(pictures)
    assert found.is_cuda and found.dtype == torch.float32
    assert (found.cpu() - expected).norm() / expected.norm() < tolerance
