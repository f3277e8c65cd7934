"""Charts carry the figures that they were given, as text, at their places, under any name."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from server.report.render import (
    SERIES_COLOURS,
    apart,
    bar_chart,
    confusion_chart,
    dot_plot,
    frequency_chart,
    line_chart,
    percent,
)

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "a & <b> $x_1$ \x07\"'"
SHOWN = EVIL.replace("\x07", "")
"""No control letter is legal in XML."""


class Chart:
    """Texts, words that show on hovering, and places of marks."""

    def __init__(self, drawn: str) -> None:
        self.root = ElementTree.fromstring(drawn)
        self.texts = ["".join(text.itertext()).strip() for text in self.root.iter(f"{SVG}text")]
        self.titles = [title.text for title in self.root.iter(f"{SVG}title")]
        self.alt = self.root.get("aria-label")

    def marks(self, title: str) -> list[tuple[float, float]]:
        """Return places (x to the right, y downwards) of the marks with these words."""
        groups = [group for group in self.root.iter(f"{SVG}g") if group.findtext(f"{SVG}title") == title]
        used = [use for group in groups for use in group.iter(f"{SVG}use")]
        return [(float(use.get("x", "nan")), float(use.get("y", "nan"))) for use in used]

    def heights(self, wanted: list[str]) -> list[float]:
        """Return how far down each of some texts stands."""
        places = {}
        for text in self.root.iter(f"{SVG}text"):
            words = "".join(text.itertext()).strip()
            places[words] = float(text.get("y") or text.get("transform", "").split()[1].rstrip(")"))
        return [places[one] for one in wanted]


def test_a_curve_ends_in_its_last_value_and_has_its_name_on_hovering() -> None:
    chart = Chart(
        line_chart([(EVIL, "#112233", [(1.0, 0.2), (2.0, 0.5), (3.0, 0.41)])], "mIoU", percent, True)
    )
    assert chart.alt == "mIoU" and chart.titles == [SHOWN]
    assert "41.0 %" in chart.texts and "50.0 %" not in chart.texts
    assert {"0 %", "1", "2", "3", "round"} <= set(chart.texts)
    (_, low), (_, high), (_, last) = chart.marks(SHOWN)
    assert high < last < low, "higher values stand higher"


@pytest.mark.parametrize(
    "curve", [[(1.0, 0.0)], [(1.0, 2.0), (2.0, 2.0)], [(float(i), -0.1 * i) for i in range(1, 101)]]
)
def test_any_curve_can_be_drawn(curve: list[tuple[float, float]]) -> None:
    assert f"{curve[-1][1]:.3g}" in Chart(line_chart([("x", "#000", curve), ("no", "#000", [])], "x")).texts


def test_labels_keep_apart_move_little_and_stay_inside() -> None:
    assert apart([0.0, 50.0, 100.0], 15, 0, 100) == [0.0, 50.0, 100.0]
    assert apart([52.0, 50.0], 10, 0, 100) == pytest.approx([56.0, 46.0])
    crowd = apart([99.0, 100.0, 98.0], 15, 0, 100)
    assert crowd == pytest.approx([85.0, 100.0, 70.0])


def test_labels_of_curves_that_end_together_leave_each_other_alone() -> None:
    early = [(f"m{i}", "#000000", [(1.0, 0.0), (4.0, 0.45 + i / 1000)]) for i in range(8)]
    late = ("late", "#000000", [(1.0, 0.0), (40.0, 0.55)])
    names = [f"{0.45 + i / 1000:.3g}" for i in range(8)]
    heights = Chart(line_chart([*early, late], "x")).heights(names)
    assert all(a - b > 10 for a, b in pairwise(heights)), "in the order of their values"
    assert "0.55" in Chart(line_chart([*early, late], "x")).texts


def test_a_crowd_of_curves_has_no_labels_but_colours_of_its_own() -> None:
    crowd = [(f"m{i}", "#000000", [(1.0, 0.0), (4.0, 0.1234 + i / 10)]) for i in range(15)]
    chart = Chart(line_chart(crowd, "x"))
    assert "0.123" not in chart.texts and set(chart.titles) == {f"m{i}" for i in range(15)}
    assert len(set(SERIES_COLOURS)) == len(SERIES_COLOURS) == 16


def test_a_dot_plot_has_means_and_names() -> None:
    chart = Chart(dot_plot([(EVIL, "#000000", [0.2, 0.4]), ("none", "#000000", [])], "dots"))
    assert {SHOWN, "30.0 %", "none", "no labels: not scored"} <= set(chart.texts)
    assert chart.alt == "dots"


def test_bars_have_values_and_names() -> None:
    chart = Chart(bar_chart([(EVIL, "#000000", 0.25), ("b", "#000000", 0.0)], "bars"))
    assert {SHOWN, "25.0 %", "b", "0.0 %"} <= set(chart.texts)


def test_confusion_has_per_cent_of_every_share_worth_naming() -> None:
    chart = Chart(
        confusion_chart(["a", EVIL], ["a", EVIL, "no class"], [[0.9, 0.004, 0.096], [0, 1, 0]], "c")
    )
    assert [text for text in chart.texts if text.isdigit()] == ["90", "10", "100"]
    assert chart.texts.count(SHOWN) == 2 and "no class" in chart.texts


def test_dots_lie_by_frequency_and_iou() -> None:
    shares = {"common": 0.9, "rare": 0.001}
    chart = Chart(frequency_chart(shares, [(EVIL, "#112233", {"common": 0.8, "rare": 0.2})], "f"))
    ((rare_x, rare_y),) = chart.marks(f"{SHOWN}: rare 20.0 %")
    ((common_x, common_y),) = chart.marks(f"{SHOWN}: common 80.0 %")
    assert rare_x < common_x and rare_y > common_y
    assert {"common", "rare", "share of pixels"} <= set(chart.texts)


def test_classes_of_one_frequency_have_names_of_their_own_places() -> None:
    shares = {f"class {i}": 1 / 19 for i in range(19)}
    chart = Chart(frequency_chart(shares, [("same place", "#000000", {"class 3": 0.0})], "f"))
    assert set(shares) <= set(chart.texts)
    xs = []
    for text in chart.root.iter(f"{SVG}text"):
        if "".join(text.itertext()).strip() in shares:
            xs.append(float(text.get("transform", "").split()[1]))
    assert np.diff(sorted(xs)).min() > 5
