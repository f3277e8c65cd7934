"""Label maps as images say truly which id has which name and color."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from common.data.classes import ClassTable
from common.evaluation.overlay import (
    VOID_COLOUR,
    cluster_colours,
    colourise,
    label_image,
    legend_entries,
    make_legend,
    overlay,
    present_ids,
    truth_legend,
    with_legend,
)

TABLE = ClassTable("toy", ("sky", "road", "car"), ((1, 2, 3), (40, 50, 60), (200, 100, 0)))


def test_colours_differ_and_a_prefix_never_changes() -> None:
    many = cluster_colours(60)
    assert len(set(many)) == 60
    assert cluster_colours(7) == many[:7]
    assert all(0 <= value <= 255 for colour in many for value in colour)


def test_mapped_clusters_get_class_ids_and_nameless_ones_follow() -> None:
    legend = make_legend(5, TABLE, [2, -1, 0, 2, -1])
    assert legend.names == ("sky", "road", "car", "cluster 1", "cluster 4")
    assert legend.apply(np.array([[0, 1, 2, 3, 4]])).tolist() == [[2, 3, 0, 2, 4]]
    assert legend.colours[:3] == TABLE.colours
    assert len(set(legend.colours)) == 5
    assert legend.apply(np.array([255])).tolist() == [255]


@pytest.mark.parametrize(("table", "mapping"), [(None, None), (TABLE, None), (None, [0, 1, 2, 0])])
def test_without_table_or_mapping_clusters_keep_their_numbers(
    table: ClassTable | None, mapping: list[int]
) -> None:
    legend = make_legend(4, table, mapping)
    assert legend.names == ("cluster 0", "cluster 1", "cluster 2", "cluster 3")
    assert legend.apply(np.arange(4)).tolist() == [0, 1, 2, 3]


def test_mapping_of_another_length_and_too_many_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="names 2 clusters; the model has 3"):
        make_legend(3, TABLE, [0, 1])
    with pytest.raises(ValueError, match="8 bits"):
        make_legend(256)


def test_painted_pixels_have_the_legends_colours() -> None:
    painted = colourise(np.array([[0, 2, 255]], dtype=np.uint8), truth_legend(TABLE))
    assert painted.tolist() == [[[1, 2, 3], [200, 100, 0], list(VOID_COLOUR)]]


def test_label_picture_keeps_ids_through_a_file() -> None:
    ids = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)
    buffer = io.BytesIO()
    label_image(ids, truth_legend(TABLE)).save(buffer, format="PNG")
    read = Image.open(buffer)
    assert read.mode == "P"
    assert np.array_equal(np.asarray(read), ids)
    assert np.asarray(read.convert("RGB"))[0, 2].tolist() == [200, 100, 0]


def test_overlay_mixes_marks_edges_and_leaves_the_unknown() -> None:
    image = np.full((4, 6, 3), 100, dtype=np.uint8)
    ids = np.zeros((4, 6), dtype=np.uint8)
    ids[:, 3:] = 2
    ids[0, 0] = 255
    mixed = overlay(image, ids, truth_legend(TABLE), alpha=0.5)
    assert mixed[2, 5].tolist() == [150, 100, 50]
    assert mixed[0, 0].tolist() == [100, 100, 100]
    assert mixed[2, 3, 0] > mixed[2, 5, 0]  # the edge is nearer to the pure colour
    with pytest.raises(ValueError, match="same size"):
        overlay(image, ids[:2], truth_legend(TABLE))


def test_legend_names_what_occurs_in_rows_that_fit() -> None:
    legend = truth_legend(TABLE)
    ids = np.array([[2, 2, 0, 255]], dtype=np.uint8)
    assert present_ids([ids], legend) == [2, 0]
    assert legend_entries(legend, [2, 0]) == (("car", "#c86400"), ("sky", "#010203"))
    image = np.full((20, 300, 3), 7, np.uint8)
    sheet = np.asarray(with_legend(image, legend, [0, 2]))
    assert sheet.shape[1] == 300 and np.array_equal(sheet[:20], image) and sheet.shape[0] > 35
    below = {tuple(color) for color in sheet[20:].reshape(-1, 3).tolist()}
    assert {TABLE.colours[0], TABLE.colours[2]} <= below and TABLE.colours[1] not in below
    assert with_legend(image[:, :70], legend, [0, 1, 2]).height > with_legend(image, legend, [0, 1, 2]).height
    assert np.array_equal(np.asarray(with_legend(image, legend, [])), image)
