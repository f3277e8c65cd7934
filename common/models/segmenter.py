"""Segmenter: a head with its centroids turns backbone features into one cluster per pixel.

Shapes: B images, C feature channels, D code length, K clusters, h x w the feature grid, H x W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checkpoint import Checkpoint, load_checkpoint
from common.models.backbone import corner_stride
from common.models.codes import codes_within, picture_codes
from common.models.site_models import chosen_model
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model

Upsample = Literal["cosines", "code"]
Within = Callable[[Tensor, Tensor | None], Tensor]
"""From codes [B, D, h, w], and colors [B, h*w, 3] of their patches, to what is compared (see `codes_within`)."""

# Factor from cosine to logit before a softmax (STEGO's and FUSS's evaluation use 2)
COSINE_SHARPNESS = 2.0

# How many fp32 values of a full-size map are held at once while labels are found (16 MiB)
STRIP_VALUES = 1 << 22


@dataclass(frozen=True)
class Geometry:
    """Where the cells of the feature grid lie on the backbone's input, in input pixels.

    ``stride`` is None for patches, which tile the input, so that outer centres lie half a patch inside. A
    CNN padded at the left and top centres cell i on pixel ``stride`` i; for sides of ``stride`` n + 1 the
    last centre is the last pixel, which is what ``align_corners=True`` means.
    """

    height: int
    width: int
    stride: int | None = None

    @classmethod
    def of(cls, model: Model) -> Geometry:
        """Return the geometry of a backbone as configured."""
        return cls(model.height, model.width, corner_stride(model))


# images of a data set have few sizes, and every strip of rows asks again
@functools.lru_cache(maxsize=64)
def interpolation(cells: int, pixels: int, side: int, stride: int | None) -> npt.NDArray[np.float32]:
    """Return the matrix [pixels, cells] of linear interpolation along one side of a picture.

    The picture's ``pixels`` were squeezed into ``side`` input pixels (see `Geometry` for ``stride``).
    """
    if stride is None:
        position = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    else:
        position = ((np.arange(pixels) + 0.5) * side / pixels - 0.5) / stride
    distance = position.clip(0, cells - 1)[:, None] - np.arange(cells)
    return (1 - np.abs(distance)).clip(0, None).astype(np.float32)


def _members(groups: np.ndarray) -> list[list[int]]:
    """Return the centroids of each cluster, by number."""
    return [np.flatnonzero(groups == group).tolist() for group in range(int(groups.max()) + 1)]


class Segmenter(nn.Module):
    """Cosine of every pixel's code to every centroid.

    ``upsample="cosines"`` compares on the grid and enlarges K maps. ``upsample="code"`` enlarges the D-d
    code first, as the reference evaluation does; the two differ, because the direction of an interpolated
    code is not the interpolation of directions.

    Where M centroids are joined into K clusters by ``groups`` [M], a cluster's cosine is that of its nearest centroid.
    ``within`` is what happens to codes inside their image first. With ``one_kind`` an image shows one of the clusters
    before a background, which is cluster 0: the others are compared with what stands out in it (see `picture_codes`).
    """

    centroids: Tensor

    def __init__(
        self,
        head: nn.Module,
        centroids: Tensor,
        geometry: Geometry,
        *,
        upsample: Upsample = "cosines",
        groups: Sequence[int] | np.ndarray | None = None,
        within: Within | None = None,
        one_kind: bool = False,
    ) -> None:
        super().__init__()
        if centroids.ndim != 2:
            raise ValueError(f"Centroids have shape {tuple(centroids.shape)}; expected [K, D].")
        self.head = head
        self.within = within
        self.one_kind = one_kind
        self.members = None if groups is None else _members(np.asarray(groups))
        self.register_buffer("centroids", centroids.detach().clone())
        self.geometry = geometry
        self.upsample: Upsample = upsample
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_groups(
        cls,
        groups: Mapping[str, Mapping[str, np.ndarray]],
        channels: int,
        config: RunConfig,
        *,
        model: Model | None = None,
        upsample: Upsample = "cosines",
    ) -> Segmenter:
        """Build a segmenter from the groups of arrays that travel; ``channels`` is C of the backbone.

        ``model`` replaces the run's backbone settings where images enter at another size.
        """
        from common.models.head import build_head, load_numpy

        model = model or config.model
        # the seed is without effect: every parameter is replaced
        module = build_head(channels, model, seed=0)
        load_numpy(module, groups["head"])
        centered = bool(np.any(groups["centroids"].get("centered", config.centerings[0])))
        within = functools.partial(
            codes_within, config=config.model_copy(update={"model": model}), centered=centered
        )
        return cls(
            module,
            torch.from_numpy(np.asarray(groups["centroids"]["centroids"], dtype=np.float32)),
            Geometry.of(model),
            upsample=upsample,
            groups=groups["centroids"].get("groups"),
            within=within if centered or config.codes.reach else None,
            one_kind=config.things.each_picture == "one",
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint | str | Path,
        *,
        site: str | None = None,
        model: Model | None = None,
        upsample: Upsample = "cosines",
    ) -> Segmenter:
        """Build the shared model of a checkpoint (an object, a file or a run directory), or that of a ``site``.

        ``model`` replaces the run's backbone settings where images enter at another size. Raises `UserError`
        where sites share no whole model and none is named.
        """
        where = str(checkpoint)
        if isinstance(checkpoint, Checkpoint):
            where = f"of {checkpoint.config.name}, round {checkpoint.round},"
        else:
            checkpoint = load_checkpoint(checkpoint)
        checkpoint = chosen_model(checkpoint, where, site)
        model = model or checkpoint.config.model
        joined = {
            k.removeprefix("joined/"): v for k, v in checkpoint.extra.items() if k.startswith("joined/")
        }
        centroids = {"centroids": checkpoint.centroids} | joined
        groups = {"head": checkpoint.head, "centroids": centroids}
        return cls.from_groups(groups, checkpoint.channels, checkpoint.config, model=model, upsample=upsample)

    @property
    def num_clusters(self) -> int:
        """K."""
        fitted = len(self.centroids) if self.members is None else len(self.members)
        return fitted + self.one_kind

    def train(self, mode: bool = True) -> Segmenter:
        """Stay in evaluation mode: a segmenter never drops channels."""
        super().train(False)
        return self

    def code(self, feats: Tensor, mirrored: Tensor | None = None, colors: Tensor | None = None) -> Tensor:
        """Return codes [B, D, h, w] of features [B, C, h, w], smoothed along ``colors`` [B, h*w, 3] if they are to be.

        ``mirrored`` holds the features of the left-right mirrored images; the codes are then averaged
        after mirroring theirs back (flip averaging on the code).
        """
        code: Tensor = self.head(feats)
        if mirrored is not None:
            code = (code + self._mirrored_back(self.head(mirrored))) / 2
        return code if self.within is None else self.within(code, colors)

    def _mirrored_back(self, code: Tensor) -> Tensor:
        """Mirror maps [B, X, h, w] back, onto the cells of the picture as it is."""
        # Patches tile the input and come to lie where they were. The cells of a CNN start at the first pixel,
        # those of the mirrored image at the last: between the two lies what the stride leaves over of the width,
        # and values are interpolated (at the rim: those of the outer cell).
        code = code.flip(-1)
        stride, cells = self.geometry.stride, code.shape[-1]
        left_over = 0 if stride is None else (self.geometry.width - 1) % stride
        if stride is None or not left_over:
            return code
        position = (np.arange(cells) - left_over / stride).clip(0, cells - 1)
        across = (1 - np.abs(position[:, None] - np.arange(cells))).clip(0, None)
        return code @ torch.from_numpy(across).to(code).T

    def cosines(self, code: Tensor) -> Tensor:
        """Return the cosine [B, K, h, w] of each code [B, D, h, w] to each cluster: to its nearest centroid.

        With ``one_kind`` they are 0 for the background, and for the image's own kind by how much a code stands out.
        """
        if not self.one_kind:
            return self._nearest(code)
        margins, pictures = picture_codes(code)
        kinds = self._nearest(pictures[:, :, None, None])[:, :, 0, 0]
        own = F.one_hot(kinds.argmax(dim=1), kinds.shape[1]).to(margins)[:, :, None, None]
        return torch.cat(
            [torch.zeros_like(margins).unsqueeze(1), own * margins.unsqueeze(1) - (1 - own)], dim=1
        )

    def _nearest(self, code: Tensor) -> Tensor:
        cosines = torch.einsum("bdhw,kd->bkhw", F.normalize(code, dim=1), F.normalize(self.centroids, dim=1))
        if self.members is None:
            return cosines
        return torch.stack([cosines[:, members].amax(dim=1) for members in self.members], dim=1)

    def resize(self, maps: Tensor, size: Sequence[int], rows: slice = slice(None)) -> Tensor:
        """Enlarge maps [B, X, h, w] bilinearly to ``size`` = (H, W), the grid where the backbone put it.

        Only the named ``rows`` of the result are computed, so that a large picture needs little memory.
        """
        g = self.geometry
        down = torch.from_numpy(interpolation(maps.shape[-2], size[0], g.height, g.stride)[rows]).to(maps)
        across = torch.from_numpy(interpolation(maps.shape[-1], size[1], g.width, g.stride)).to(maps)
        return down @ maps @ across.T

    @torch.no_grad()
    def logits(
        self, feats: Tensor, size: Sequence[int], mirrored: Tensor | None = None, rows: slice = slice(None)
    ) -> Tensor:
        """Return cosines [B, K, H, W] in -1..1 for features [B, C, h, w] of B whole images.

        With ``rows`` only those rows of the H are returned.
        """
        return self.logits_of_code(self.code(feats, mirrored), size, rows)

    def logits_of_code(self, code: Tensor, size: Sequence[int], rows: slice = slice(None)) -> Tensor:
        """Return cosines [B, K, H, W] of codes [B, D, h, w] (see `logits`)."""
        # the direction of an interpolated code is not the interpolation of directions
        if self.upsample == "code":
            return self.cosines(self.resize(code, size, rows))
        return self.resize(self.cosines(code), size, rows)

    def labels_of_code(self, code: Tensor, size: Sequence[int]) -> Tensor:
        """Return the nearest cluster, uint8 [B, H, W], of codes [B, D, h, w]; works in strips of rows."""
        height, width = size
        depth = max(self.num_clusters, code.shape[1]) * code.shape[0] * width
        strip = max(1, STRIP_VALUES // depth)
        parts = [
            self.logits_of_code(code, size, slice(top, top + strip)).argmax(dim=1).to(torch.uint8)
            for top in range(0, height, strip)
        ]
        return torch.cat(parts, dim=1)
