"""What pages about species share: names of stages, a map of rounded places, hours of the clock."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from foveate.report.charts import Scale, histogram, nice_ticks, plot, svg_text, tick_below
from foveate.species.results import CameraRow, TaxonRow

STAGES = {
    "classifier": "Model alone",
    "temperature": "Temperature",
    "prior": "Prior",
    "species_list": "Species list",
    "pooling": "Pooling over the event",
    "rules": "SpeciesNet's rules",
    "rollup": "Roll-up",
    "threshold": "Threshold",
}
_MAX_HOUR_CHARTS = 6


def format_time(time: str) -> str:
    """Write a time with dashes in its date and a blank behind it; EXIF has colons there, ISO 8601 a T."""
    # By regular expression, so that both forms of a date match and an offset stays as it was written.
    return re.sub(r"^(\d{4})[:-](\d\d)[:-](\d\d)T?", r"\1-\2-\3 ", time).replace("  ", " ").rstrip()


def draw_hours(taxa: Sequence[TaxonRow], unit: str, *, count: int = _MAX_HOUR_CHARTS) -> list[Markup]:
    """Draw the hours of the clock at which the most frequent animals were photographed.

    Args:
        unit: of the decisions, "events" or "images".
        count: number of charts.
    """
    charts = []
    # Without a trusted clock an animal has no hours, and an empty chart would look like no activity.
    for row in [row for row in taxa if row.kind == "animal" and len(row.hours) == 24 and sum(row.hours)][:count]:
        known = sum(row.hours)
        title = f"{row.name}, {known:,} {unit if known > 1 else unit.removesuffix('s')}"
        charts.append(plot(title, histogram(list(range(25)), row.hours, title=title, unit="hour of the clock")))
    return charts


def _degree_ticks(degrees: Sequence[float], *, limit: int) -> list[float]:
    """Return ticks around degrees of latitude or longitude; there are none beyond the poles or the date line."""
    ticks = nice_ticks(min(degrees), max(degrees), num_ticks=4)
    # A set, because several ticks beyond a pole are clamped to the same value.
    return sorted({min(max(tick, -limit), limit) for tick in ticks})


def draw_map(cameras: Sequence[CameraRow], *, width: int = 440, height: int = 330) -> Markup | None:
    """Draw cameras at their rounded places, dots by the number of images; None where no place is in the result."""
    placed = [row for row in cameras if row.latitude is not None and row.longitude is not None]
    if not placed:
        return None
    latitudes = [row.latitude for row in placed if row.latitude is not None]
    longitudes = [row.longitude for row in placed if row.longitude is not None]
    x_ticks, y_ticks = _degree_ticks(longitudes, limit=180), _degree_ticks(latitudes, limit=90)
    left, right, top, bottom = 56, width - 20, 16, height - 36
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], left, right), Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"Map of {len(placed)} cameras, places rounded")}">'
    ]
    for tick in x_ticks:
        parts.append(f'<line class="rule" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(tick_below(x_of(tick), bottom + 20, f"{tick:g}°", width=width))
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, f"{tick:g}°", anchor="end"))
    max_images = max(row.images for row in placed)
    # Cameras of one rounded place are drawn around it, the largest first, so that none hides another.
    shared: dict[tuple[float | None, float | None], int] = {}
    for row in sorted(placed, key=lambda row: -row.images):
        assert row.latitude is not None
        assert row.longitude is not None
        number = shared.setdefault((row.latitude, row.longitude), 0)
        shared[row.latitude, row.longitude] += 1
        shift_x, shift_y = (0, 12, -12, 0, 0)[number % 5], (0, 0, 0, 12, -12)[number % 5]
        # The area of a dot, not its radius, says how many images there are.
        radius = 3.5 + 7 * (row.images / max_images) ** 0.5
        x = min(max(x_of(row.longitude) + shift_x, left + radius), right - radius)
        y = min(max(y_of(row.latitude) + shift_y, top + radius), bottom - radius)
        label = f"{row.camera}: {row.images:,} images" + (f", mostly {row.top}" if row.top else "")
        parts.append(
            f'<circle class="dot s1" fill-opacity=".7" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(label)}</title></circle>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))
