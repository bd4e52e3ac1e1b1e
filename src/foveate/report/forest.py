"""Forest charts: one row per variant with its mean and interval, the reference as a line through all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from foveate.report.charts import Scale, nice_ticks, tick_below
from foveate.report.numbers import short

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
