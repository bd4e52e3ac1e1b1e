"""Geometry of the hand-written charts."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.report.charts import (
    ForestRow,
    Scale,
    Series,
    forest,
    histogram,
    interval_bar,
    line_chart,
    nice_ticks,
    stacked_bar,
    thin,
    tradeoff_chart,
)
from foveate.report.compared import Point, cost_chart, log_ticks
from naming import raises_naming

numbers = st.floats(-1e6, 1e6)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def of_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in root.iter() if name in element.get("class", "").split()]


@given(numbers, numbers)
def test_ticks_cover_the_range_in_equal_round_steps(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6 * max(1.0, abs(low)):
        return
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= 12
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(lead - wanted) for wanted in (1, 2, 5, 10)) < 1e-3


def test_ticks_of_a_constant_and_of_nonsense() -> None:
    assert nice_ticks(3.0, 3.0)[0] <= 3.0 < nice_ticks(3.0, 3.0)[-1]
    with pytest.raises(ValueError, match="finite"):
        nice_ticks(math.nan, 1.0)


def test_ticks_of_a_range_that_underflows() -> None:
    assert nice_ticks(0.0, 5e-324)[-1] >= 5e-324
    assert nice_ticks(5e-324, 5e-324)


def test_scale_maps_ends_and_a_constant_to_the_middle() -> None:
    scale = Scale(2.0, 4.0, 10.0, 110.0)
    assert (scale(2.0), scale(3.0), scale(4.0)) == (10.0, 60.0, 110.0)
    assert Scale(1.0, 1.0, 0.0, 10.0)(1.0) == 5.0


def test_thinning_averages_and_drops_what_is_not_finite() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)] + [(1000.0, math.nan), (1001.0, math.inf)]
    thinned = thin(points, max_points=100)
    assert len(thinned) == 100
    assert all(y == 0.5 for _, y in thinned)
    assert thin(points[:3], max_points=100) == points[:3]


def test_line_chart_places_points_inside_its_axes() -> None:
    falling = [(0.0, 10.0), (50.0, 5.0), (100.0, 0.0)]
    root = parse(line_chart([Series("a", falling), Series("b", [(0.0, 0.0), (100.0, 10.0)], 1)], title="loss"))
    first, second = (
        [tuple(float(v) for v in pair.split(",")) for pair in line.get("points", "").split()]
        for line in root.iter("polyline")
    )
    assert first[0][1] < first[1][1] < first[2][1], "larger values lie higher"
    assert first[1] == pytest.approx(((first[0][0] + first[2][0]) / 2, (first[0][1] + first[2][1]) / 2), abs=0.11)
    assert second[0] == (first[0][0], first[2][1])
    _, _, width, height = (float(v) for v in root.get("viewBox", "").split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in first + second)
    assert root.get("role") == "img"
    assert "a from 10 to 0" in root.get("aria-label", "")


def test_a_legend_has_the_last_values_where_they_say_something() -> None:
    series = [Series("seen", [(0.0, 72.4), (9.0, 0.278)])]
    assert "seen  0.278</text>" in line_chart(series, title="S/Y (%)")
    assert "seen</text>" in line_chart(series, title="S/Y (%)", end_values=False)


def test_line_chart_of_nothing_is_empty_and_names_are_escaped() -> None:
    assert line_chart([Series("a", [(0.0, math.nan)])], title="loss") == ""
    chart = line_chart([Series("<b>", [(0.0, 1.0), (1.0, 2.0)])], title='"><script>')
    assert "<script>" not in chart
    assert "<b>" not in chart
    parse(chart)


def test_interval_bar_geometry() -> None:
    root = parse(interval_bar(0.5, 0.4, 0.6, chance=0.25))
    (fill,) = of_class(root, "fill")
    assert float(fill.get("width", "")) == 50.0
    whisker = of_class(root, "whisker")
    assert (float(whisker[0].get("x1", "")), float(whisker[0].get("x2", ""))) == (40.0, 60.0)
    (chance,) = of_class(root, "chance")
    assert float(chance.get("x1", "")) == 25.0
    assert root.get("aria-label") == "50.0%, interval 40.0–60.0, chance 25.0%"


@pytest.mark.parametrize(("value", "width"), [(-0.5, 0.0), (1.7, 100.0)])
def test_interval_bar_stays_inside(value: float, width: float) -> None:
    (fill,) = of_class(parse(interval_bar(value, None, None)), "fill")
    assert float(fill.get("width", "")) == width
    assert interval_bar(None, None, None) == ""
    assert interval_bar(math.nan, None, None) == ""


def test_histogram_heights_follow_counts() -> None:
    root = parse(histogram([0, 1, 10, 100], [10, 40, 20], title="length", unit="words"))
    heights = [float(bar.get("height", "")) for bar in of_class(root, "column")]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.2)
    assert heights[1] == pytest.approx(2 * heights[2], abs=0.2)
    with raises_naming(ValueError, "4"):
        histogram([0, 1], [1, 2, 3], title="length")
    parse(histogram([0, 1], [0], title="empty"))


def labels_of_the_axis(svg: str) -> list[tuple[str, float, float]]:
    """Text, left and right end of the labels below a chart, as wide as DejaVu Sans makes them."""
    root = parse(svg)
    found = [text for text in of_class(root, "tick") if text.get("text-anchor") == "middle"]
    half = {id(text): 0.636 * 12.5 * len(text.text or "") / 2 for text in found}
    return [
        (text.text or "", float(text.get("x", "")) - half[id(text)], float(text.get("x", "")) + half[id(text)])
        for text in found
    ]


@pytest.mark.parametrize(
    "svg",
    [
        histogram([number * 0.043211 for number in range(21)], [1] * 20, title="score", unit="score"),
        histogram([0, 12345678.0], [3], title="bytes"),
        line_chart([Series("a", [(0.0, 1.0), (125_000.0, 2.0)])], title="loss"),
        forest([ForestRow("a", 12_250.0, 12_010.0, 12_500.0)], title="forest", zero=False),
        tradeoff_chart([Series("a", [(0.0, 1.0), (99.9, 2.0)])], [], title="trade-off"),
        cost_chart([Point("a", 2e8, 90.0, True), Point("b", 9e8, 95.0, True)], title="cost", x_label="numbers"),
    ],
    ids=["histogram", "histogram of one bin", "lines", "forest", "trade-off", "cost"],
)
def test_labels_of_the_axis_lie_inside_the_drawing_and_apart(svg: str) -> None:
    labels = labels_of_the_axis(svg)
    assert len(labels) > 1
    assert all(left >= 0 and right <= 440 for _, left, right in labels)
    assert all(one[2] < other[1] for one, other in itertools.pairwise(labels)), labels


@given(st.lists(st.tuples(st.floats(1.0, 1e9), st.floats(0, 100)), min_size=1, max_size=20))
def test_names_in_a_cost_chart_stand_apart_from_dots_and_from_one_another(found: list[tuple[float, float]]) -> None:
    points = [
        Point(f"method-{number}", cost, value, all(value > v or cost < c for c, v in found if (c, v) != (cost, value)))
        for number, (cost, value) in enumerate(found)
    ]
    root = parse(cost_chart(points, title="cost", x_label="numbers"))
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in of_class(root, "dot")]
    names = []
    for text in of_class(root, "name"):
        wide, x = 6.8 * len(text.text or ""), float(text.get("x", ""))
        names.append((x - wide if text.get("text-anchor") == "end" else x, float(text.get("y", "")), wide, text.text))
    assert {point.name for point in points if point.unbeaten} <= {text for *_, text in names}
    beaten = [one for one in names if not points[int((one[3] or "").removeprefix("method-"))].unbeaten]
    for x, y, wide, _ in beaten:
        assert not any(x < across < x + wide and y - 10 < down < y + 3 for across, down in dots)
        assert all(x == at or abs(y - down) >= 12 or x >= at + other or at >= x + wide for at, down, other, _ in names)


@given(st.floats(1e-3, 1e9), st.floats(1.0, 1e6))
def test_ticks_of_a_logarithmic_axis_cover_it(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks[0] <= low * 1.000001
    assert ticks[-1] >= low * factor * 0.999999
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(f"{tick:e}"[0] in "125" for tick in ticks)


def test_stacked_bar_shares_fill_the_width() -> None:
    root = parse(stacked_bar({"a": 30.0, "b": 60.0, "c": 10.0}, title="time"))
    starts = [float(part.get("x", "")) for part in of_class(root, "part")]
    assert starts == [0.0, 30.0, 90.0]
    assert re.search(r"a 30 s; b 1 min 00 s; c 10 s", root.get("aria-label", ""))
    assert stacked_bar({}, title="time") == ""


def test_as_many_points_as_are_drawn_stay_as_they_are() -> None:
    points = [(float(x), float(x * x)) for x in range(240)]
    assert thin(points) == points
    assert thin([*points, (240.0, 1.0), (math.nan, 1.0)])[0] == (0.5, 0.5)
