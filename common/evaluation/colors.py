"""Colors inside an image turn a coarse map of clusters into one of pixels: a mixture with a local prior.

Every cluster gets one Gaussian of the image's own pixels, fitted by expectation-maximization that starts from the
coarse map p = softmax(cosines / temperature). With c the color of pixel i, r its responsibilities and M a mean over a
window of about a patch,

    r_ik  ~  (l p_ik + (1 - l) M r_ik) N(c_i; mu_k, S_k)^b,      b = w / max(exp H(r) - 1, 1/2),

H(r) the entropy of the image's shares of clusters. The local mean lets things smaller than a patch appear, where the
prior alone would forbid them. The more clusters share an image, the less its colors tell them apart: exp H(r) counts
those that are really there, so that colors decide between two kinds of things and hardly speak among ten.
It happens at a site, image by image, and needs no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.data.images import Bytes
from common.settings.label_free import Refine
from common.settings.schema import RunConfig
from common.settings.unsupervised import Model

# larger images are worked on at this size, and responsibilities enlarged: memory stays below 1 GB for 27 clusters
MAX_PIXELS = 400_000
# added to the covariance of colors in 0..1: about a twentieth of the range, so that flat areas do not win by flatness
_RIDGE = 2e-3
# an image of low contrast gets less, this share of the variance of its colors: dark nuclei 79 to 81
_RELATIVE_RIDGE = 0.3
# an image of one color has no variance at all
_TINY = 1e-6
# part of the covariance that clusters share in the last half of the steps: where a small cluster holds some of
# another's pixels its own is too wide (nuclei 82.0 to 83.4; shared from the first step on: worse)
_SHARED = 0.5
# a cluster's share of an image below this has no color of its own
_FEWEST = 1e-6


def refine_by_colors(cosines: Tensor, image: Bytes, settings: Refine, height: int) -> Bytes:
    """Return the most probable cluster of every pixel, uint8 [H, W]; see `color_shares`."""
    labels: Bytes = color_shares(cosines, image, settings, height).argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def color_shares(cosines: Tensor, image: Bytes, settings: Refine, height: int) -> Tensor:
    """Return how probable each cluster is at every pixel, [K, H, W].

    Args:
        cosines: [K, H, W] in -1..1, of the coarse map enlarged to the image.
        image: RGB, uint8 [H, W, 3].
        settings: weights and widths; ``radius`` is in pixels of the input.
        height: of the backbone's input in pixels.
    """
    size = (image.shape[0], image.shape[1])
    shrink = math.sqrt(min(1.0, MAX_PIXELS / (size[0] * size[1])))
    work = (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
    logits = cosines.float() / settings.temperature
    if work != size:
        logits = F.interpolate(logits.unsqueeze(0), size=work, mode="area")[0]
        image = np.asarray(Image.fromarray(image).resize(work[::-1], Image.Resampling.BOX))
    colors = torch.from_numpy(np.array(image)).to(logits.device).float().div_(255).flatten(0, 1)
    radius = max(1, round(settings.radius * work[0] / height))
    shares = responsibilities(torch.softmax(logits, dim=0), colors, settings, radius)
    if work != size:
        shares = F.interpolate(shares.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]
    return shares


# the six pairs of color channels, and where each of the nine entries of a covariance stands among them
_PAIRS = torch.triu_indices(3, 3)
_SQUARE = torch.tensor([[0, 1, 2], [1, 3, 4], [2, 4, 5]])


@torch.no_grad()
def responsibilities(prior: Tensor, colors: Tensor, settings: Refine, radius: int) -> Tensor:
    """Return r [K, H, W] of the mixture (see the head of this file).

    ``prior`` is p [K, H, W], ``colors`` float [H * W, 3] in 0..1, ``radius`` half the window in pixels.
    """
    shares, monomials = prior, color_monomials(colors)
    for step in range(settings.steps):
        flat = shares.flatten(1)
        portion = flat.mean(dim=1)
        present = torch.exp(-(portion * portion.clamp(min=_FEWEST).log()).sum())
        weight = settings.colors / max(float(present) - 1, 0.5)
        local = settings.prior * prior + (1 - settings.prior) * window_mean(shares, radius)
        logits = local.clamp(min=1e-12).log() + weight * log_densities(
            flat, monomials, _SHARED * (2 * step >= settings.steps)
        ).view_as(local)
        shares = torch.softmax(logits, dim=0)
    return shares


def log_densities(shares: Tensor, monomials: Tensor, shared: float = 0.0) -> Tensor:
    """Return log N(c_i; mu_k, S_k) [K, n] but for a constant; weights [K, n] fit the Gaussians.

    ``shared`` is the part of each covariance that is that of all clusters together, within them. Both the fit and the
    densities are linear in the ``monomials`` [n, 10] of the colors: one product each.
    """
    sums = (shares @ monomials).double()
    total = sums[:, :1].clamp(min=_FEWEST)
    means = sums[:, 1:4] / total
    second = (sums[:, 4:] / total)[:, _SQUARE]
    covariance = second - means[:, :, None] * means[:, None]
    pooled = (total[:, :, None] * covariance).sum(dim=0) / total.sum()
    whole = sums.sum(dim=0)
    variance = float((whole[[4, 7, 9]] / whole[0] - (whole[1:4] / whole[0]).square()).mean())
    ridge = min(_RIDGE, _RELATIVE_RIDGE * variance) + _TINY
    covariance = (1 - shared) * covariance + shared * pooled
    precision = torch.linalg.inv(covariance + ridge * torch.eye(3, dtype=torch.float64, device=sums.device))
    slope = (precision @ means[:, :, None])[:, :, 0]
    constant = torch.logdet(precision) - (means * slope).sum(dim=1)
    pairs = precision[:, *_PAIRS] * torch.where(_PAIRS[0] == _PAIRS[1], 1.0, 2.0).to(precision)
    forms = torch.cat([constant[:, None], 2 * slope, -pairs], dim=1) / 2
    return forms.to(monomials) @ monomials.T


def color_monomials(colors: Tensor) -> Tensor:
    """Return 1, the three colors, and their six products: [n, 3] -> [n, 10]."""
    ones = colors.new_ones(len(colors), 1)
    return torch.cat([ones, colors, colors[:, _PAIRS[0]] * colors[:, _PAIRS[1]]], dim=1)


def window_mean(maps: Tensor, radius: int) -> Tensor:
    """Return the mean of maps [K, H, W] over windows of 2 radius + 1 pixels; at the rim the outer pixels repeat."""
    padded = F.pad(maps.unsqueeze(0), (radius,) * 4, mode="replicate")
    across = F.avg_pool2d(padded, (1, 2 * radius + 1), stride=1)
    return F.avg_pool2d(across, (2 * radius + 1, 1), stride=1)[0]


def uses_colors(config: RunConfig) -> bool:
    """Whether the colors of an image decide together with its coarse map."""
    # what stands out before a background has parts of many colors: steel 28.8 with them, 34.1 without
    return config.refine.colors > 0 and config.things.each_picture == "several"


def color_refinement(config: RunConfig, model: Model) -> Callable[[Tensor, Bytes], Bytes] | None:
    """Return `refine_by_colors` as a run's settings have it, for images that enter as ``model`` says; None: off."""
    if not uses_colors(config):
        return None
    return partial(refine_by_colors, settings=config.refine, height=model.height)
