"""The page on which a person names clusters: typical crops, area, place and sites of each, and a form."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.images import Bytes
from common.evaluation.overlay import NOTHING, cluster_colours, hex_colour
from server.report.render import render_page

# Crops of a cluster, and their side in pixels as shown
CROPS, SIDE = 6, 132
# The grid on which is counted where a cluster lies: rows, columns
_PLACES = (12, 16)
# Images are worked on with this longer side: a crop then has about twice the pixels that are shown
WORKED = 512
# Side of a crop as a part of the shorter side of its image
_PART = 0.45
# A crop shows so much of its cluster at least. More than the second is no better: what lies around it tells what it is
_LEAST, _ENOUGH = 0.1, 0.75
_BOX = 8  # pixels: presence is averaged over cells of this side before the crops are chosen


@dataclass
class ClusterSeen:
    """What is known of one cluster: area by site in pixels, where it lies [h, w], and its best crops (score, JPEG)."""

    area: dict[str, int] = field(default_factory=dict)
    places: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(_PLACES))
    crops: list[tuple[float, str, str]] = field(default_factory=list)


class ClusterGallery:
    """Collects clusters over images, one image at a time, so that memory does not grow with them."""

    def __init__(self, clusters: int) -> None:
        self.seen = [ClusterSeen() for _ in range(clusters)]
        self.sites: dict[str, int] = {}  # pixels
        self.images = 0

    def add(self, image: Bytes, labels: Bytes, site: str, name: str) -> None:
        """Take an image uint8 [H, W, 3] and its clusters uint8 [H, W]; ``name`` is shown on hovering."""
        self.images += 1
        self.sites[site] = self.sites.get(site, 0) + labels.size
        for cluster in np.unique(labels):
            if cluster >= len(self.seen):
                continue
            mask = labels == cluster
            own = self.seen[cluster]
            own.area[site] = own.area.get(site, 0) + int(mask.sum())
            own.places += _shrunk(mask, _PLACES)
            self._crop(own, image, mask, name)

    def _crop(self, own: ClusterSeen, image: Bytes, mask: npt.NDArray[np.bool_], name: str) -> None:
        """Keep the window of an image that shows most of a cluster, if it is among the best so far."""
        height, width = mask.shape
        side = max(8, round(_PART * min(height, width)))
        grid = _shrunk(mask, (max(1, height // _BOX), max(1, width // _BOX)))
        reach = max(1, side // _BOX)
        share, top, left = _fullest(grid, min(reach, grid.shape[0]), min(reach, grid.shape[1]))
        share = min(share, _ENOUGH)
        if share < _LEAST and own.crops:
            return
        if len(own.crops) >= CROPS and share <= own.crops[-1][0]:
            return
        y = min(max(0, round(top * height / grid.shape[0])), max(0, height - side))
        x = min(max(0, round(left * width / grid.shape[1])), max(0, width - side))
        window = (slice(y, y + side), slice(x, x + side))
        own.crops.append((share, _jpeg(_outlined(image[window], mask[window])), name))
        own.crops.sort(key=lambda crop: -crop[0])
        del own.crops[CROPS:]


def _shrunk(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BOX), np.float64) / 255


def _fullest(grid: npt.NDArray[np.float64], high: int, wide: int) -> tuple[float, int, int]:
    """Return the mean, the row and the column of the window [high, wide] with the largest mean."""
    sums = np.pad(grid.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    means = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = np.unravel_index(means.argmax(), means.shape)
    return float(means[top, left]) / (high * wide), int(top), int(left)


def _outlined(image: Bytes, mask: npt.NDArray[np.bool_]) -> Bytes:
    """Dim what is not the cluster, and draw a line around what is."""
    shown = image.astype(np.float32)
    shown[~mask] = 0.45 * shown[~mask] + 0.55 * 238
    edge = np.zeros_like(mask)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    shown[edge] = (214, 40, 90)
    return shown.round().astype(np.uint8)


def _jpeg(image: Bytes) -> str:
    buffer = io.BytesIO()
    picture = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _place_image(places: npt.NDArray[np.float64]) -> str:
    strength = places / max(places.max(), 1e-9)
    # from the paper's gray to dark blue, which reads the same for all eyes and in both schemes
    shades = (
        np.array([232, 234, 238]) * (1 - strength[..., None]) + np.array([22, 58, 120]) * strength[..., None]
    ).round()
    buffer = io.BytesIO()
    Image.fromarray(shades.astype(np.uint8)).resize((96, 72), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def names_page(
    gallery: ClusterGallery,
    names: Sequence[str],
    title: str,
    suggestions: Sequence[str] = (),
    save_to: str = "",
) -> str:
    """Return the page as HTML. ``save_to`` is the path that takes the TOML by POST; empty: it is downloaded."""
    total = max(1, sum(gallery.sites.values()))
    colors = [hex_colour(color) for color in cluster_colours(len(names))]
    clusters = []
    for number, seen in enumerate(gallery.seen):
        area = sum(seen.area.values())
        sites = [(site, 100 * seen.area.get(site, 0) / max(1, size)) for site, size in gallery.sites.items()]
        clusters.append(
            {
                "number": number,
                "name": names[number],
                "color": colors[number],
                "area": 100 * area / total,
                "sites": sorted(sites, key=lambda pair: -pair[1])[:6],
                "more_sites": max(0, len(sites) - 6),
                "place": _place_image(seen.places) if area else "",
                "crops": [(source, name) for _, source, name in seen.crops],
            }
        )
    known = list(dict.fromkeys([*suggestions, *(name for name in names if name), NOTHING]))
    return render_page(
        "names",
        title=title,
        images=gallery.images,
        clusters=sorted(clusters, key=lambda one: -float(str(one["area"]))),
        known=known,
        nothing=NOTHING,
        save_to=save_to,
    )
