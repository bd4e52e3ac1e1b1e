"""Charts of comparisons: cost against value with those that nobody beats, and a matrix of how alike methods are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from foveate.report.charts import Scale, nice_ticks, svg_text, tick_below
from foveate.report.numbers import short

_LINE = 15  # pixels between two labels


@dataclass(frozen=True, slots=True)
class Point:
    """One method: what it costs, what it is worth in percent, and whether no other beats it."""

    name: str
    cost: float
    value: float
    unbeaten: bool


def amount(value: float) -> str:
    """A number of numbers or bytes in few characters: `0`, `940`, `36.9k`, `1.2M`."""
    for limit, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if value >= limit:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def cost_chart(points: Sequence[Point], *, title: str, x_label: str, width: int = 440, height: int = 330) -> Markup:
    """Costs on a logarithmic axis, 0 in front of it; a line through the unbeaten, whose names stand beside them.

    The others are named where there is room.
    """
    if not points:
        return Markup("")
    positive = [point.cost for point in points if point.cost > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
    last = max(last, first + 1)
    zero = any(point.cost <= 0 for point in points)
    left, right, top, bottom = 46, width - 20, 18, height - 44
    x_of = Scale(first - 1.0 if zero else float(first), float(last), left + 6, right)
    y_ticks = nice_ticks(min(point.value for point in points), max(point.value for point in points), wanted=5)
    y_of = Scale(y_ticks[0], y_ticks[-1], bottom, top)

    def place(point: Point) -> tuple[float, float]:
        return x_of(math.log10(point.cost) if point.cost > 0 else first - 1.0), y_of(point.value)

    told = "; ".join(f"{p.name} {p.value:.1f} at {amount(p.cost)}" for p in points)
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}: {told}")}">']
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, short(tick), anchor="end"))
    every = max(1, math.ceil((last - first) / 6))
    for power in range(first, last + 1, every):
        parts.append(tick_below(x_of(power), bottom + 18, amount(10.0**power), width=width))
    if zero:
        parts.append(svg_text(x_of(first - 1.0), bottom + 18, "0"))
    parts.append(svg_text(right, height - 6, x_label, anchor="end", style="axis"))
    front = sorted((point for point in points if point.unbeaten), key=lambda one: (one.cost, one.value))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, front))
    parts.append(f'<polyline class="series s1" points="{line}"/>')
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda one: (not one.unbeaten, -one.value)):
        x, y = place(point)
        parts.append(
            f'<circle class="dot{" s1" if point.unbeaten else ""}" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(point.name)}: {point.value:.1f}, {amount(point.cost)}</title></circle>"
        )
        wide = 7.0 * len(point.name)
        anchor = "end" if x + wide > right else "start"
        from_x, label_y = (x - 8 - wide if anchor == "end" else x + 8), (y - 8 if point.unbeaten else y + 4)
        while point.unbeaten and _covered(from_x, label_y, wide, taken):
            label_y += _LINE
        dots = [(at - 4, height + 4, 8.0) for at, height in (place(one) for one in points if one is not point)]
        if not point.unbeaten and _covered(from_x, label_y, wide, [*taken, *dots]):
            continue
        taken.append((from_x, label_y, wide))
        parts.append(svg_text(x - 8 if anchor == "end" else x + 8, label_y, point.name, anchor=anchor, style="name"))
    parts.append("</svg>")
    return Markup("".join(parts))


def _covered(x: float, y: float, wide: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a label from x on would lie on one of the others (left end, baseline, width)."""
    return any(abs(y - other) < _LINE and x < at + size and at < x + wide for at, other, size in taken)


def matrix_chart(names: Sequence[str], matrix: Sequence[Sequence[float]], *, title: str) -> Markup:
    """Shares between 0 and 1 as cells, darker where lower, so that what differs stands out; numbers are percent."""
    cell, side = 34, 9 + 7 * max(len(name) for name in names)
    width, height = side + cell * len(names) + 4, side + cell * len(names) + 4
    values = [value for number, row in enumerate(matrix) for place, value in enumerate(row) if place != number]
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
        for place, other in enumerate(names):
            value = matrix[number][place]
            x, y = side + cell * place, side + cell * number
            strength = 0.0 if place == number else 0.12 + 0.6 * (high - value) / ((high - low) or 1.0)
            said = escape(f"{name}, {other}: {100 * value:.1f}%")
            parts.append(
                f'<rect class="p3" x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" '
                f'fill-opacity="{strength:.2f}"><title>{said}</title></rect>'
            )
            if place != number:
                parts.append(svg_text(x + cell / 2, y + cell / 2 + 4, f"{100 * value:.0f}", style="name"))
    parts.append("</svg>")
    return Markup("".join(parts))
