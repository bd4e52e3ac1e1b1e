"""Charts as hand-written SVG: pure functions from numbers to markup, colored by the page's style sheet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from foveate.report.numbers import count, duration, interval, measure, short

_DIGIT = 8.0  # pixels of a digit in labels of 12.5 pixels, in DejaVu Sans; other fonts of the page are narrower


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart: its name and its points (x, y) in order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from data [low, high] to pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        # A single value lies in the middle.
        share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def nice_ticks(low: float, high: float, *, num_ticks: int = 5) -> list[float]:
    """Return about `num_ticks` round numbers, 1, 2 or 5 times a power of ten apart, that cover [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("ticks need finite ends")
    # Differences this small underflow to a step of zero: drawn like a single value.
    if high - low < 1e-300:
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0)
    rough = (high - low) / max(1, num_ticks - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    # Slightly less than `rough`, so that a step which fits exactly is not lost to rounding.
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
    # 1e-9: an end that is a tick up to rounding gets no further tick outside.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded, so that three steps of .1 are .3 and not .30000000000000004.
    return [round(number * step, 12) for number in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]], *, max_points: int = 240) -> list[tuple[float, float]]:
    """Drop non-finite points, then average neighbors until at most `max_points` points are left."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= max_points:
        return finite
    size = math.ceil(len(finite) / max_points)
    # Means instead of every n-th point: what a noisy curve looks like must not depend on which points are picked.
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def svg_text(x: float, y: float, text: str, *, anchor: str = "middle", style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def tick_below(x: float, y: float, value: float | str, *, width: int) -> str:
    """Draw a label of a horizontal axis under x, moved sideways so far that it lies inside the drawing."""
    text = value if isinstance(value, str) else short(value)
    half = _DIGIT * len(text) / 2
    return svg_text(min(max(x, half), width - half), y, text)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    width: int = 440,
    height: int = 250,
    from_zero: bool = False,
    span: tuple[float, float] | None = None,
    end_values: bool = True,
) -> Markup:
    """Draw lines with axes, round ticks and a legend above; empty where no series has a point.

    Args:
        span: part of the x axis that is shaded, such as the time in which something is in sight.
        end_values: write the last value of each line into the legend (of a line that `thin` shortens, the mean of its
            last points); False where the last x is only the end of a grid.
    """
    lines = [Series(s.name, thin(s.points), s.style) for s in series]
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    # The x axis spans all points: means of neighbors begin after the first step and end before the last.
    xs = [x for s in series for x, y in s.points if math.isfinite(x) and math.isfinite(y)]
    # Scale to the thinned lines: one outlier among thousands of steps must not flatten the curve.
    ys = [y for line in lines for _, y in line.points]
    x_ticks = [tick for tick in nice_ticks(min(xs), max(xs), num_ticks=6) if min(xs) <= tick <= max(xs)]
    # Steps end at their ticks on the y axis; on the x axis a tick outside the data would leave an empty strip.
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys), num_ticks=4)
    left, right, top, bottom = 46, width - 14, 40, height - 38
    x_of = Scale(min(xs), max(xs), left, right)
    y_of = Scale(y_ticks[0], y_ticks[-1], bottom, top)
    summary = "; ".join(f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}: {summary}")}">'
    ]
    if span:
        start, end = (min(max(x_of(x), left), right) for x in span)
        edges = f'x="{start:.1f}" y="{top}" width="{end - start:.1f}" height="{bottom - top}"'
        parts.append(f'<rect class="span" {edges}/>')
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(svg_text(left - 8, y + 4, short(tick), anchor="end"))
    for tick in x_ticks:
        parts.append(tick_below(x_of(tick), bottom + 18, tick, width=width))
    parts.append(svg_text(right, height - 4, x_label, anchor="end", style="axis"))
    at = float(left)
    for line in lines:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="series s{line.style}" points="{points}"/>')
        end_x, end_y = line.points[-1]
        end = f'cx="{x_of(end_x):.1f}" cy="{y_of(end_y):.1f}" r="3"'
        parts.append(f'<circle class="dot s{line.style}" {end}/>')
        parts.append(f'<line class="series s{line.style}" x1="{at:.0f}" x2="{at + 18:.0f}" y1="14" y2="14"/>')
        label = f"{line.name}  {end_y:.3g}" if end_values else line.name
        parts.append(svg_text(at + 24, 18, label, anchor="start", style="name"))
        # 6.8: mean width of a letter in the legend's font; an SVG cannot measure its text.
        at += 46 + 6.8 * len(label)
    parts.append("</svg>")
    return Markup("".join(parts))


def interval_bar(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    chance: float | None = None,
    unit: str = "fraction",
    maximum: float = 1.0,
    style: str = "",
) -> Markup:
    """Draw a value in [0, maximum] as a small bar, with its interval as a whisker and chance as a tick.

    The drawing is 100 x 12 units and stretches to its cell.
    """
    if value is None or not math.isfinite(value):
        return Markup("")

    def at(number: float) -> float:
        # The ends of an interval may lie outside [0, maximum]; the drawing must not leave its cell.
        return 100 * min(1.0, max(0.0, number / maximum))

    text = measure(value, unit=unit)
    span = interval(low, high, unit=unit)
    label = text + (f", interval {span}" if span else "")
    if chance is not None:
        label += f", chance {measure(chance, unit=unit)}"
    parts = [
        f'<svg class="bar {escape(style)}" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">',
        '<rect class="track" x="0" y="4" width="100" height="4"/>',
        f'<rect class="fill" x="0" y="4" width="{at(value):.2f}" height="4"/>',
    ]
    if span:
        assert low is not None
        assert high is not None
        parts.append(f'<line class="whisker" x1="{at(low):.2f}" x2="{at(high):.2f}" y1="6" y2="6"/>')
        for end in (low, high):
            parts.append(f'<line class="whisker" x1="{at(end):.2f}" x2="{at(end):.2f}" y1="3" y2="9"/>')
    if chance is not None:
        parts.append(f'<line class="chance" x1="{at(chance):.2f}" x2="{at(chance):.2f}" y1="0" y2="12"/>')
    parts.append("</svg>")
    return Markup("".join(parts))


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    *,
    title: str,
    unit: str = "",
    width: int = 440,
    height: int = 220,
) -> Markup:
    """Draw counts per bin as bars of equal width, whatever the edges are, with the edges written below."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"a histogram of {len(counts)} bins needs {len(counts) + 1} edges (got {len(edges)})")
    left, right, top, bottom = 52, width - 14, 14, height - 40
    # At least 1, so that a histogram whose bins are all empty still has an axis.
    y_ticks = nice_ticks(0.0, max(1.0, *counts), num_ticks=4)
    y_of = Scale(0.0, y_ticks[-1], bottom, top)
    y_ticks = [tick for tick in y_ticks if tick == y_ticks[-1] or tick % 1 == 0]  # there is no half count
    x_of = Scale(0, len(counts), left, right)
    total = sum(counts)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"{title}: {count(total)} values from {short(edges[0])} to")} '
        f'{escape(f"{short(edges[-1])} {unit}".strip())}">'
    ]
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(svg_text(left - 8, y + 4, short(tick), anchor="end"))
    for number, value in enumerate(counts):
        # A gap of two pixels keeps neighboring columns apart.
        x, w = x_of(number) + 1, x_of(number + 1) - x_of(number) - 2
        y = y_of(value)
        parts.append(
            f'<rect class="column" x="{x:.1f}" y="{y:.1f}" '
            # At least half a pixel, so that a bar of many bins stays visible.
            f'width="{max(w, 0.5):.1f}" height="{bottom - y:.1f}">'
            f"<title>{escape(f'{short(edges[number])} to {short(edges[number + 1])} {unit}'.strip())}: "
            f"{count(value)}</title></rect>"
        )
    # At most about six labels: more would touch each other.
    every = max(1, math.ceil(len(edges) / 6))
    for number in range(0, len(edges), every):
        parts.append(tick_below(x_of(number), bottom + 18, edges[number], width=width))
    if unit:
        parts.append(svg_text(right, height - 4, unit, anchor="end", style="axis"))
    parts.append("</svg>")
    return Markup("".join(parts))


def plot(title: str, chart: Markup) -> Markup:
    """Wrap a chart in a figure with its title above."""
    return Markup('<figure class="plot"><figcaption>{}</figcaption>{}</figure>').format(title, chart)


def stacked_bar(parts_seconds: Mapping[str, float], *, title: str) -> Markup:
    """Draw shares of a total side by side in one bar of 100 x 10 units that stretches to its container."""
    total = sum(parts_seconds.values())
    if total <= 0:
        return Markup("")
    label = "; ".join(f"{name} {duration(value)}" for name, value in parts_seconds.items())
    drawn = [
        f'<svg class="stack" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{title}: {label}")}">'
    ]
    at = 0.0
    for number, value in enumerate(parts_seconds.values()):
        share = 100 * value / total
        # A gap of .25 between parts; the smallest part stays visible.
        rectangle = f'x="{at:.3f}" y="0" width="{max(share - 0.25, 0.1):.3f}" height="10"'
        drawn.append(f'<rect class="part p{number % 6}" {rectangle}/>')
        at += share
    drawn.append("</svg>")
    return Markup("".join(drawn))


# Forest charts: one row per variant with its mean and interval, the reference as a line through all of them.


_LABEL, _RIGHT, _ROW, _TOP, _BOTTOM = 168, 14, 24, 8, 34


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A row of the chart.

    style: "reference", "variant", "baseline" or "control". without: text in place of a missing interval.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    style: str = "variant"
    without: str = "one seed"


def _ends(row: ForestRow) -> tuple[float, float]:
    low = row.value if row.low is None else row.low
    high = row.value if row.high is None else row.high
    return low, high


def forest(
    rows: Sequence[ForestRow], *, title: str, zero: bool = True, line: float | None = None, width: int = 440
) -> Markup:
    """Draw means as dots and intervals as bars, with `line` through all rows (the reference, or no difference).

    Args:
        zero: the axis starts at zero unless something lies below it.
    """
    # `nice_ticks` raises an error for ends that are not finite: one row of NaN would cost the whole page.
    finite = [row for row in rows if all(map(math.isfinite, (row.value, *_ends(row))))]
    if not finite:
        return Markup("")
    lows, highs = zip(*map(_ends, finite), strict=True)
    # The axis starts at zero by default: a cut-off axis makes small differences look large.
    low = min(0.0, *lows) if zero else min(lows)
    ticks = nice_ticks(low, max(highs), num_ticks=5)
    left, right = _LABEL, width - _RIGHT
    x_of = Scale(ticks[0], ticks[-1], left, right)
    bottom = _TOP + _ROW * len(finite)
    summary = "; ".join(f"{row.name} {row.value:.3g}" for row in finite)
    parts = [
        f'<svg class="chart forest" viewBox="0 0 {width} {bottom + _BOTTOM}" role="img" '
        f'aria-label="{escape(f"{title}: {summary}")}">'
    ]
    for tick in ticks:
        x = x_of(tick)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(tick_below(x, bottom + 18, tick, width=width))
    if line is not None:
        x = x_of(line)
        parts.append(f'<line class="through" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for number, row in enumerate(finite):
        y = _TOP + _ROW * (number + 0.5)
        start, stop = _ends(row)
        span = f"{short(start)} to {short(stop)}" if row.low is not None else row.without
        parts.append(f'<g class="f-{escape(row.style)}"><title>{escape(row.name)}: {short(row.value)}, {span}</title>')
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>'
            f'<line class="span" x1="{x_of(start):.1f}" x2="{x_of(stop):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="mean" cx="{x_of(row.value):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def difference_bar(value: float, low: float | None, high: float | None, *, margin: float, reach: float) -> Markup:
    """Draw a difference with its interval on [-reach, reach], with ticks at zero and at the margin."""

    def at(number: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, number / reach))

    # Without an interval the bar is a hairline at the value, and the label omits the ends.
    start, stop = (value if low is None else low), (value if high is None else high)
    label = f"difference {value:+.3f}" + ("" if low is None else f", from {start:+.3f} to {stop:+.3f}")
    ticks = ['<line class="zero" x1="50" x2="50" y1="0" y2="14"/>']
    if margin:
        ticks.append(f'<line class="margin" x1="{at(margin):.2f}" x2="{at(margin):.2f}" y1="0" y2="14"/>')
    return Markup(
        f'<svg class="difference" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="track" x="0" y="5" width="100" height="4"/>{"".join(ticks)}'
        # At least a hairline, so that an interval without width stays visible.
        f'<rect class="reach" x="{at(start):.2f}" y="4" width="{max(at(stop) - at(start), 0.8):.2f}" height="6"/>'
        f'<line class="mean" x1="{at(value):.2f}" x2="{at(value):.2f}" y1="2" y2="12"/></svg>'
    )


# Maps of points: one SVG path per group, names at the groups' middles where asked, a legend of the groups.


COLORS = 10  # classes g0 to g9 of the style sheet; all further groups share the gray class `rest`


def ranked(groups: Sequence[str]) -> dict[str, str]:
    """Map groups to styles: the most frequent ones, in order of their names, get a color each."""
    counts = Counter(groups)
    # The largest groups get a color, but by the order of their names: a legend is read by name.
    colored = sorted(sorted(counts, key=lambda group: (-counts[group], group))[:COLORS], key=natural)
    styles = {name: f"g{number}" for number, name in enumerate(colored)}
    return styles | {name: "rest" for name in sorted(counts, key=natural) if name not in styles}


def natural(name: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by value, then words by their last number (client 2 before client 10)."""
    if name.lstrip("-").isdecimal():
        return 0, float(name), ""
    head = name.rstrip("0123456789")
    # Texts compare letter by letter, so numbers need equal lengths to compare by value.
    return 1, 0.0, head + name[len(head) :].zfill(9)


def scatter(
    places: Sequence[Sequence[float]],
    groups: Sequence[str],
    styles: dict[str, str],
    *,
    title: str,
    size: int = 400,
    named: bool = False,
) -> Markup:
    """Draw a square map with equal scales; of three dimensions the third is dropped. Empty without a point.

    Args:
        named: each group's name stands at the median of its points (those with a color of their own).
    """
    if not places:
        return Markup("")
    xs, ys = [float(point[0]) for point in places], [float(point[1]) for point in places]
    # One scale for both axes: otherwise a distance would depend on its direction.
    reach = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    x_of = Scale(middle[0] - reach / 2, middle[0] + reach / 2, 10, size - 10)
    y_of = Scale(middle[1] - reach / 2, middle[1] + reach / 2, size - 10, 10)
    # Dots shrink as their number grows, so that all of them together cover about the same area.
    width = min(8.0, max(2.6, 160 / math.sqrt(len(places))))
    parts = [
        f'<svg class="map" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{escape(f"{title}: {len(places):,} points of {len(styles)} groups")}">'
    ]
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    # Gray groups first, so that they lie under the colored ones.
    for group in sorted(members, key=lambda name: (styles[name] != "rest", natural(name))):
        # A line of length 0 with round ends is a dot: one path for a group instead of thousands of circles.
        drawn = "".join(f"M{x_of(xs[index]):.1f} {y_of(ys[index]):.1f}h0" for index in members[group])
        parts.append(f'<path class="pts {styles[group]}" style="stroke-width:{width:.1f}" d="{drawn}"/>')
    if named:
        for group, indices in sorted(members.items(), key=lambda item: natural(item[0])):
            if styles[group] != "rest":
                x, y = _median([xs[index] for index in indices]), _median([ys[index] for index in indices])
                parts.append(f'<text class="at" x="{x_of(x):.1f}" y="{y_of(y) + 4:.1f}">{escape(group[:18])}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def legend(styles: dict[str, str]) -> Markup:
    """Draw the groups with their colors; those without a color are counted."""
    colored = [(name, style) for name, style in styles.items() if style != "rest"]
    items = [f'<li><i class="{style}"></i>{escape(name)}</li>' for name, style in colored]
    rest = len(styles) - len(colored)
    if rest:
        items.append(f'<li><i class="rest"></i>{rest} more</li>')
    return Markup(f'<ul class="groups">{"".join(items)}</ul>')


# One accuracy against another: curves over a number (gamma, alpha) with selected values marked on them.


_LINE = 15  # pixels between two labels


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with a name: both accuracies in percent, such as on seen (x) and absent classes (y)."""

    name: str
    x: float
    y: float
    style: int = 1


def tradeoff_chart(
    series: Sequence[Series],
    marks: Sequence[Mark],
    *,
    title: str,
    width: int = 440,
    height: int = 330,
    labels: tuple[str, str, str] = ("accuracy on seen classes, S/Y (%)", "seen", "absent"),
) -> Markup:
    """Draw curves from pairs of accuracies in percent, and marks with their names beside them.

    Args:
        labels: of the horizontal axis, and what both values of a mark are called.
    """
    lines = [line for line in (Series(s.name, thin(s.points), s.style) for s in series) if line.points]
    if not lines:
        return Markup("")
    x_max = max(x for line in lines for x, _ in line.points)
    y_max = max(y for line in lines for _, y in line.points)
    x_ticks, y_ticks = nice_ticks(0.0, max(x_max, 1.0), num_ticks=6), nice_ticks(0.0, max(y_max, 1.0), num_ticks=5)
    left, right, top, bottom = 46, width - 20, 40, height - 44
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], left, right), Scale(y_ticks[0], y_ticks[-1], bottom, top)
    summary = "; ".join(f"{mark.name} {mark.x:.1f} {labels[1]}, {mark.y:.1f} {labels[2]}" for mark in marks)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}: {summary}")}">'
    ]
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, short(tick), anchor="end"))
    for tick in x_ticks:
        parts.append(tick_below(x_of(tick), bottom + 18, tick, width=width))
    parts.append(svg_text(right, height - 6, labels[0], anchor="end", style="axis"))
    at = float(left)
    for line in lines:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="series s{line.style}" points="{points}"/>')
        parts.append(f'<line class="series s{line.style}" x1="{at:.0f}" x2="{at + 18:.0f}" y1="14" y2="14"/>')
        parts.append(svg_text(at + 24, 18, line.name, anchor="start", style="name"))
        # 6.8 is the mean width of a letter in the legend, as in `line_chart`.
        at += 46 + 6.8 * len(line.name)
    placed: list[tuple[float, float]] = []
    # From the top down: a name whose height is taken moves down first, away from those that stand.
    for mark in sorted(marks, key=lambda mark: -mark.y):
        x, y = x_of(mark.x), y_of(mark.y)
        parts.append(f'<circle class="dot s{mark.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        label_y = _free(y + 4, x, placed, lowest=bottom - 4)
        placed.append((x, label_y))
        # Names stand inside the curve, on the side of the origin, unless the left edge is too near.
        inside = x - left > 8 * len(mark.name)
        label_x, anchor = (x - 9, "end") if inside else (x + 9, "start")
        parts.append(svg_text(label_x, label_y, mark.name, anchor=anchor, style="name"))
    parts.append("</svg>")
    return Markup("".join(parts))


def _free(y: float, x: float, placed: Sequence[tuple[float, float]], *, lowest: float) -> float:
    """Return the height nearest to y, below it first, where a name beside x meets none that is already placed."""
    # Names farther apart than about fourteen letters cannot overlap.
    near = [other for at_x, other in placed if abs(x - at_x) < 7 * 14]
    start = min(y, lowest)
    steps = (step * sign for step in range(len(near) + 1) for sign in (1, -1))
    heights = (start + _LINE * step for step in steps)
    return next((h for h in heights if h <= lowest and all(abs(h - other) >= _LINE for other in near)), start)
