"""Label maps as images in color: legend, overlay, palette image.

A `Legend` says what each id of a map is called and which color it has. Maps are uint8 [H, W]; 255 is
"nothing known here". Images are uint8 [H, W, 3].
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.data.classes import ClassTable
from common.data.images import Bytes as Bytes

VOID = 255  # a pixel without a class
VOID_COLOUR = (232, 234, 238)  # near the paper: what nobody labelled is not to draw the eye

# the name of what is no thing: overlays leave it as it is
NOTHING = "nothing"

# twelve hues that stay apart on a screen and in print; more are generated
_DISTINCT = (
    (66, 133, 207), (238, 134, 54), (76, 166, 91), (206, 73, 80), (142, 106, 188), (148, 103, 84),
    (224, 122, 187), (110, 118, 130), (190, 183, 56), (48, 181, 200), (30, 84, 130), (246, 194, 110),
)  # fmt: skip


def cluster_colours(count: int) -> list[tuple[int, int, int]]:
    """Return ``count`` colours for things that have no colour of their own; a prefix never changes."""
    colours = list(_DISTINCT[:count])
    for index in range(len(colours), count):
        hue = (0.11 + index * 0.6180339887) % 1.0  # golden ratio: any prefix is spread over the circle
        light, strength = ((0.42, 0.62), (0.62, 0.55), (0.32, 0.45), (0.75, 0.60))[index % 4]
        red, green, blue = colorsys.hls_to_rgb(hue, light, strength)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours


@dataclass(frozen=True)
class Legend:
    """Names and colours of the ids 0 .. n-1, and how clusters become such ids.

    ``of_cluster`` uint8 [K] gives the id of each cluster.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    of_cluster: Bytes

    def apply(self, clusters: npt.NDArray[np.integer]) -> Bytes:
        """Turn a map of clusters (any integer type, 0..K-1, or 255 = nothing) into a map of ids."""
        table = np.full(256, VOID, dtype=np.uint8)
        table[: len(self.of_cluster)] = self.of_cluster
        ids: Bytes = table[clusters]
        return ids

    def as_json(self) -> list[dict[str, object]]:
        """Return ``[{"id", "name", "colour": "#rrggbb"}, ...]``."""
        return [
            {"id": index, "name": name, "colour": hex_colour(colour)}
            for index, (name, colour) in enumerate(zip(self.names, self.colours, strict=True))
        ]


def make_legend(
    num_clusters: int, classes: ClassTable | None = None, mapping: Sequence[int] | None = None
) -> Legend:
    """Name K clusters: by the class matched to each, or ``cluster 3`` where none is.

    With a mapping the ids 0..C-1 are the classes; clusters without a class (-1) follow as C, C+1, ...
    Without a class table or a mapping the ids are the clusters themselves.
    """
    if num_clusters > VOID:
        raise ValueError(f"{num_clusters} clusters do not fit a label map of 8 bits; at most {VOID} do.")
    if classes is None or mapping is None:
        return Legend(
            tuple(f"cluster {k}" for k in range(num_clusters)),
            tuple(cluster_colours(num_clusters)),
            np.arange(num_clusters, dtype=np.uint8),
        )
    if len(mapping) != num_clusters:
        raise ValueError(f"The mapping names {len(mapping)} clusters; the model has {num_clusters}.")
    names, colours = list(classes.names), [(int(r), int(g), int(b)) for r, g, b in classes.colours]
    of_cluster = np.empty(num_clusters, dtype=np.uint8)
    spare = iter(cluster_colours(len(names) + num_clusters))
    for cluster, matched in enumerate(mapping):
        if matched >= 0:
            of_cluster[cluster] = matched
            continue
        of_cluster[cluster] = len(names)
        names.append(f"cluster {cluster}")
        colours.append(next(colour for colour in spare if colour not in colours))
    return Legend(tuple(names), tuple(colours), of_cluster)


def truth_legend(classes: ClassTable) -> Legend:
    """Return the legend of a map of true classes."""
    return make_legend(classes.num_classes, classes, range(classes.num_classes))


def hex_colour(colour: Sequence[int]) -> str:
    """Return ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _palette(legend: Legend) -> Bytes:
    """Return the color of every id, uint8 [256, 3]; whatever the legend does not name is light grey."""
    table = np.full((256, 3), VOID_COLOUR, dtype=np.uint8)
    table[: len(legend.colours)] = legend.colours
    return table


def colourise(ids: Bytes, legend: Legend) -> Bytes:
    """Paint a map of ids; whatever the legend does not name becomes light grey."""
    painted: Bytes = _palette(legend)[ids]
    return painted


def overlay(image: Bytes, ids: Bytes, legend: Legend, alpha: float = 0.55) -> Bytes:
    """Lay a map over its image: colour at strength ``alpha``, solid lines where segments meet.

    The image is greyed a little first, so that its own colours are not taken for the legend's.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"The image is {image.shape[:2]} and the map {ids.shape}; expected the same size.")
    picture = image.astype(np.float32)
    picture = 0.5 * picture + 0.5 * picture.mean(axis=2, keepdims=True)
    colours = colourise(ids, legend).astype(np.float32)
    empty = [index for index, name in enumerate(legend.names) if name == NOTHING]
    known = ~np.isin(ids, [VOID, *empty])[..., None]
    mixed = np.where(known, (1 - alpha) * picture + alpha * colours, picture)
    edge = np.zeros(ids.shape, dtype=bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:, :] |= ids[1:, :] != ids[:-1, :]
    mixed[edge] = 0.25 * mixed[edge] + 0.75 * colours[edge]  # a line is thin: it needs more color
    painted: Bytes = mixed.round().astype(np.uint8)
    return painted


def label_image(ids: Bytes, legend: Legend) -> Image.Image:
    """Return a palette image whose pixel values are the ids and whose palette is the legend."""
    picture = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    picture.putpalette(_palette(legend).tobytes())  # makes the grey image a palette image, values kept
    return picture


def present_ids(maps: Sequence[Bytes], legend: Legend) -> list[int]:
    """Return the ids of a legend that occur in any of the maps, the most frequent first."""
    counts = np.zeros(256, dtype=np.int64)
    for ids in maps:
        counts += np.bincount(ids.reshape(-1), minlength=256)
    counts = counts[: len(legend.names)]
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]


def legend_entries(legend: Legend, ids: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Return (name, "#rrggbb") of some ids."""
    return tuple((legend.names[index], hex_colour(legend.colours[index])) for index in ids)


def with_legend(image: Bytes, legend: Legend, ids: Sequence[int]) -> Image.Image:
    """Put the legend of the named ids under an image, uint8 [H, W, 3]."""
    from common.figures import legend_image  # not at import time: labels are written without matplotlib

    width = image.shape[1]
    size = max(11, min(22, width // 38))  # readable where the image is shown in the width of a page
    strip = legend_image(legend_entries(legend, ids), width, size)
    return Image.fromarray(np.concatenate([image, strip]))
