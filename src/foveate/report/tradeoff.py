"""One accuracy against another: curves over a number (gamma, alpha) with selected values marked on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from foveate.report.charts import Scale, Series, nice_ticks, svg_text, thin, tick_below
from foveate.report.numbers import short

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
