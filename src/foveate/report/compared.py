"""Charts of comparisons: cost against value, agreement of methods, classes mistaken for each other, values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from foveate.report.charts import Scale, nice_ticks, svg_text, tick_below
from foveate.report.numbers import short

_LINE = 15  # pixels between two labels
_MAX_NAME = 18  # letters of a class beside a matrix


@dataclass(frozen=True, slots=True)
class Point:
    """One method: its cost, its value in percent, and whether it is on the Pareto front (no other beats it)."""

    name: str
    cost: float
    value: float
    unbeaten: bool


def amount(value: float) -> str:
    """Format a count or a number of bytes in few characters: `0`, `940`, `36.9k`, `1.2M`."""
    for limit, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if value >= limit:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers that cover [low, high] on a logarithmic axis.

    They are 1, 2 and 5 times each power of ten; where the ends are a factor of 100 or more apart, at most seven powers
    alone.

    >>> log_ticks(240, 1_500), log_ticks(40, 3e5)
    ([200.0, 500.0, 1000.0, 2000.0], [10.0, 100.0, 1000.0, 10000.0, 100000.0, 1000000.0])
    """
    # 1e-9: an end that is a power of ten up to rounding needs no further one.
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if math.log10(high / low) >= 2:
        every = math.ceil((last - first) / 6)
        return [10.0**power for power in range(first, last + every, every)]
    ticks = [float(f"{factor}e{power}") for power in range(first, max(last, first + 1) + 1) for factor in (1, 2, 5)]
    start = max(number for number, tick in enumerate(ticks) if tick <= low * (1 + 1e-9))
    stop = min(number for number, tick in enumerate(ticks) if tick >= high * (1 - 1e-9))
    return ticks[start : max(stop, start + 1) + 1]


def cost_chart(points: Sequence[Point], *, title: str, x_label: str, width: int = 440, height: int = 330) -> Markup:
    """Draw values over costs on a logarithmic axis, with a line through the Pareto front.

    Methods on the front have their names beside them, the others where there is room.
    """
    if not points:
        return Markup("")
    positive = [point.cost for point in points if point.cost > 0] or [1.0]
    x_ticks = log_ticks(min(positive), max(positive))
    first, last = math.log10(x_ticks[0]), math.log10(x_ticks[-1])
    # A logarithmic axis has no zero: free methods get a place of their own, a quarter of the axis to the left.
    zero = first - (last - first) / 4 if any(point.cost <= 0 for point in points) else None
    left, right, top, bottom = 46, width - 20, 18, height - 44
    x_of = Scale(first if zero is None else zero, last, left + 6, right)
    y_ticks = nice_ticks(min(point.value for point in points), max(point.value for point in points), num_ticks=5)
    y_of = Scale(y_ticks[0], y_ticks[-1], bottom, top)

    def locate(point: Point) -> tuple[float, float]:
        return x_of(math.log10(point.cost) if point.cost > 0 else zero or 0.0), y_of(point.value)

    summary = "; ".join(f"{p.name} {p.value:.1f} at {amount(p.cost)}" for p in points)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}: {summary}")}">'
    ]
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, short(tick), anchor="end"))
    for tick in x_ticks:
        parts.append(tick_below(x_of(math.log10(tick)), bottom + 18, amount(tick), width=width))
    if zero is not None:
        parts.append(svg_text(x_of(zero), bottom + 18, "0"))
    parts.append(svg_text(right, height - 6, x_label, anchor="end", style="axis"))
    front = sorted((point for point in points if point.unbeaten), key=lambda point: (point.cost, point.value))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(locate, front))
    parts.append(f'<polyline class="series s1" points="{line}"/>')
    dots, names = [locate(point) for point in points], _Names(left, right, bottom)
    for point in sorted(points, key=lambda point: (not point.unbeaten, -point.value)):
        x, y = locate(point)
        parts.append(
            f'<circle class="dot{" s1" if point.unbeaten else ""}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(point.name)}: {point.value:.1f}, {amount(point.cost)}</title></circle>"
        )
        parts.append(names.write_name(point, (x, y), [dot for dot in dots if dot != (x, y)]))
    parts.append("</svg>")
    return Markup("".join(parts))


class _Names:
    """Place names beside dots, one after the other, so that they meet neither each other nor dots."""

    def __init__(self, left: float, right: float, bottom: float) -> None:
        self.left, self.right, self.bottom = left, right, bottom
        self.placed: list[tuple[float, float, float]] = []

    def write_name(self, point: Point, at: tuple[float, float], dots: Sequence[tuple[float, float]]) -> str:
        """Return the markup of a name; empty for a point off the front without room."""
        # 7.4: mean width of a letter in pixels; an SVG cannot measure its text.
        (x, y), wide = at, 7.4 * len(point.name)
        if point.unbeaten:
            # Above and to the left there is no dot: it would be cheaper and better, and beat this one.
            tried = [("end", y - 6 - _LINE * up) for up in range(4)] + [("start", y - 8), ("start", y + 16)]
        else:
            tried = [("start", y + 4), ("end", y + 4)]
        for anchor, label_y in tried:
            start = x - 8 - wide if anchor == "end" else x + 8
            inside = start >= self.left and start + wide <= self.right and _LINE - 4 <= label_y <= self.bottom
            if inside and not self._covered(start, label_y, wide, dots):
                break
        else:
            if not point.unbeaten:
                return ""
            anchor, label_y = ("start", y - 8) if x - 8 - wide < self.left else ("end", y - 6)
            start = x - 8 - wide if anchor == "end" else x + 8
        self.placed.append((start, label_y, wide))
        return svg_text(x - 8 if anchor == "end" else x + 8, label_y, point.name, anchor=anchor, style="name")

    def _covered(self, x: float, y: float, wide: float, dots: Sequence[tuple[float, float]]) -> bool:
        """Whether a name from x on, with its baseline at y, would lie on a name or on a dot of 4 pixels."""
        if any(-7 < y - down < 14 and x - 4 < across < x + wide + 4 for across, down in dots):
            return True
        return any(abs(y - other) < _LINE and x < at + size and at < x + wide for at, other, size in self.placed)


def matrix_chart(names: Sequence[str], matrix: Sequence[Sequence[float]], *, title: str) -> Markup:
    """Draw shares in [0, 1] as cells, darker where lower, so that differences stand out; numbers are percent."""
    # 7: mean width of a letter in pixels; an SVG cannot measure its text.
    cell, side = 34, 9 + 7 * max(len(name) for name in names)
    width, height = side + cell * len(names) + 4, side + cell * len(names) + 4
    # Without the diagonal, which is always 1 and would use up a part of the shades.
    values = [value for number, row in enumerate(matrix) for column, value in enumerate(row) if column != number]
    low, high = min(values, default=0.0), max(values, default=1.0)
    parts = [
        f'<svg class="chart matrix" viewBox="0 0 {width} {height}" role="img" '
        f'style="min-width:{min(width, 640)}px;max-width:{width}px" '
        f'aria-label="{escape(title)}: from {100 * low:.0f} to {100 * high:.0f} percent">'
    ]
    for number, name in enumerate(names):
        at = side + cell * (number + 0.5)
        parts.append(svg_text(side - 6, at + 4, name, anchor="end", style="name"))
        parts.append(
            f'<text class="name" x="{at + 4:.1f}" y="{side - 6}" text-anchor="start" '
            f'transform="rotate(-90 {at + 4:.1f} {side - 6})">{escape(name)}</text>'
        )
        for column, other in enumerate(names):
            value = matrix[number][column]
            x, y = side + cell * column, side + cell * number
            # From .12 on: the highest share is still told from the empty diagonal.
            strength = 0.0 if column == number else 0.12 + 0.6 * (high - value) / ((high - low) or 1.0)
            cell_title = escape(f"{name}, {other}: {100 * value:.1f}%")
            parts.append(
                f'<rect class="p3" x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" '
                f'fill-opacity="{strength:.2f}"><title>{cell_title}</title></rect>'
            )
            if column != number:
                parts.append(svg_text(x + cell / 2, y + cell / 2 + 4, f"{100 * value:.0f}", style="name"))
    parts.append("</svg>")
    return Markup("".join(parts))


def confusion_chart(names: Sequence[str], counts: Sequence[Sequence[int]], *, title: str) -> Markup:
    """Draw counts by true class (row) and answer (column), darker where more of a row; right answers in another color.

    Args:
        names: of the classes; long ones are cut.
        counts: [K][K].
    """
    labels = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in names]
    # 8: a wide letter in pixels; a name must not be cut at the edge.
    cell, side = 34, 9 + 8 * max(len(label) for label in labels)
    size = side + cell * len(names) + 4
    right = sum(row[number] for number, row in enumerate(counts))
    total = sum(map(sum, counts))
    parts = [
        f'<svg class="chart matrix" viewBox="0 0 {size} {size}" role="img" '
        f'style="min-width:{min(size, 640)}px;max-width:{size}px" '
        f'aria-label="{escape(title)}: {right:,} of {total:,} on the diagonal">'
    ]
    for number, row in enumerate(counts):
        at = side + cell * (number + 0.5)
        parts.append(svg_text(side - 6, at + 4, labels[number], anchor="end", style="name"))
        parts.append(
            f'<text class="name" x="{at + 4:.1f}" y="{side - 6}" text-anchor="start" '
            f'transform="rotate(-90 {at + 4:.1f} {side - 6})">{escape(labels[number])}</text>'
        )
        total_of_row = sum(row) or 1
        for column, value in enumerate(row):
            x, y = side + cell * column, side + cell * number
            told = escape(f"{names[number]}, answered {names[column]}: {value:,} of {sum(row):,}")
            strength = 0.05 + 0.65 * value / total_of_row if value else 0.03
            parts.append(
                f'<rect class="{"p1" if column == number else "p3"}" x="{x + 1}" y="{y + 1}" width="{cell - 2}" '
                f'height="{cell - 2}" fill-opacity="{strength:.2f}"><title>{told}</title></rect>'
            )
            if value:
                parts.append(svg_text(x + cell / 2, y + cell / 2 + 4, short(value), style="name"))
    parts.append("</svg>")
    return Markup("".join(parts))


def value_chart(points: Sequence[tuple[float, float]], *, title: str, unit: str = "", size: int = 400) -> Markup:
    """Draw predicted against true values as dots, and the line on which both are equal; empty without a point."""
    if not points:
        return Markup("")
    values = [value for point in points for value in point]
    # One scale for both axes: only then is equality the diagonal.
    ticks = nice_ticks(min(values), max(values), num_ticks=5)
    left, bottom = 58, size - 40
    x_of, y_of = Scale(ticks[0], ticks[-1], left, size - 14), Scale(ticks[0], ticks[-1], bottom, 12)
    parts = [
        f'<svg class="chart" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{escape(f"{title}: {len(points):,} images from {short(min(values))} to {short(max(values))}")}">'
    ]
    for tick in ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{size - 14}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, short(tick), anchor="end"))
        parts.append(tick_below(x_of(tick), bottom + 18, tick, width=size))
    ends = f'x1="{left}" y1="{bottom}" x2="{size - 14}" y2="12"'
    parts.append(f'<line class="series s2" {ends}/>')
    width = min(8.0, max(3.0, 120 / math.sqrt(len(points))))
    drawn = "".join(f"M{x_of(true):.1f} {y_of(predicted):.1f}h0" for true, predicted in points)
    parts.append(f'<path class="pts g0" style="stroke-width:{width:.1f}" d="{drawn}"/>')
    axes = f"true{f' ({unit})' if unit else ''}, predicted upwards"
    parts.append(svg_text(size - 14, size - 5, axes, anchor="end", style="axis"))
    parts.append("</svg>")
    return Markup("".join(parts))
