"""Page of species predictions: taxa, hours, a map of rounded places, samples with boxes, accuracies where labeled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.charts import Scale, Series, histogram, line_chart, nice_ticks, plot
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.parts import table_groups
from foveate.species.results import CameraRow, SampleImage, SpeciesResult

KINDS = {
    "animal": "Animals",
    "blank": "Blank",
    "human": "People",
    "vehicle": "Vehicles",
    "unknown": "No answer",
    "unclassified": "Not readable",
}
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
_MAX_CLASSES = 60


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a result.json of predictions (`SpeciesResult`)."""
    r = parse_result(SpeciesResult, result)
    unit = "events" if r.events else "images"
    facts = [("Images", numbers.count(r.images)), ("Cameras", numbers.count(r.cameras))]
    facts += [(f"Decisions ({unit})", numbers.count(r.decisions))] if r.events else []
    facts += [(KINDS.get(name, name), numbers.count(count)) for name, count in r.counts.items() if count]
    facts += [("Labeled images", numbers.count(r.labels))] if r.labels else []
    species = sum(row.rank in ("species", "subspecies") for row in r.taxa)
    title = r.title or (f"{species} species at {r.cameras} cameras" if species else f"{r.images:,} images")
    title = f"{r.labels:,} labeled images of {r.cameras} cameras" if r.evaluation else title
    context = {
        "r": r,
        "unit": unit,
        "lead": _lead(r),
        "facts": facts,
        "groups": table_groups(r.evaluation.table, r.evaluation.columns) if r.evaluation else [],
        "hours": _hour_charts(r),
        "map": _draw_map(r.per_camera),
        "coverage": _coverage_chart(r),
        "scores": _score_chart(r),
        "samples": [(sample, _overlays(sample)) for sample in r.samples],
        "classes": r.classes[:_MAX_CLASSES],
        "stages": STAGES,
        "settings": _settings(r.settings),
        "command": command_text(r.command),
    }
    return Page("species.html.j2", title, context)


def _lead(r: SpeciesResult) -> str:
    seen = f"{r.cropped:,} of {r.images:,} images were cropped to a box" if r.view == "crop" else "Whole images"
    failed = f"; {r.failed:,} could not be read and are listed below" if r.failed else ""
    return f"{seen}{failed}. A name is the most specific taxon that is likely enough."


def _overlays(sample: SampleImage) -> list[Overlay]:
    return [] if sample.box is None else [Overlay(sample.box, "default")]


def _hour_charts(r: SpeciesResult) -> list[Markup]:
    """Hours of the clock at which the most frequent animals were photographed."""
    rows = [row for row in r.taxa if row.kind == "animal" and len(row.hours) == 24 and sum(row.hours)]
    charts = []
    for row in rows[:_MAX_HOUR_CHARTS]:
        title = f"{row.name}, {sum(row.hours):,} {'events' if r.events else 'images'}"
        charts.append(plot(title, histogram(list(range(25)), row.hours, title=title, unit="hour of the clock")))
    return charts


def _coverage_chart(r: SpeciesResult) -> Markup | None:
    if r.coverage is None or len(r.coverage.coverage) < 2:
        return None
    points = list(zip(r.coverage.coverage, r.coverage.precision, strict=True))
    title = "Precision against coverage"
    chart = line_chart([Series("model", points)], title=title, x_label="share of images answered", from_zero=True)
    return plot(title, chart)


def _score_chart(r: SpeciesResult) -> Markup | None:
    if r.score_histogram is None:
        return None
    title = "Probability of the answers"
    edges = [round(edge, 2) for edge in r.score_histogram.edges]
    return plot(title, histogram(edges, r.score_histogram.counts, title=title, unit="probability"))


def _draw_map(cameras: Sequence[CameraRow], *, width: int = 560, height: int = 380) -> Markup | None:
    """Draw cameras at their rounded places, dots by the number of images; None where no place is in the result."""
    placed = [row for row in cameras if row.latitude is not None and row.longitude is not None]
    if not placed:
        return None
    latitudes = [row.latitude for row in placed if row.latitude is not None]
    longitudes = [row.longitude for row in placed if row.longitude is not None]
    x_ticks = nice_ticks(min(longitudes), max(longitudes), num_ticks=4)
    y_ticks = nice_ticks(min(latitudes), max(latitudes), num_ticks=4)
    left, right, top, bottom = 56, width - 20, 16, height - 36
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], left, right), Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"Map of {len(placed)} cameras, places rounded")}">'
    ]
    for tick in x_ticks:
        parts.append(f'<line class="rule" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x_of(tick):.1f}" y="{bottom + 22}" text-anchor="middle">{tick:g}°</text>')
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:g}°</text>')
    max_images = max(row.images for row in placed)
    # Cameras of one rounded place are drawn around it, the largest first, so that none hides another.
    shared: dict[tuple[float | None, float | None], int] = {}
    for row in sorted(placed, key=lambda row: -row.images):
        assert row.latitude is not None
        assert row.longitude is not None
        number = shared.setdefault((row.latitude, row.longitude), 0)
        shared[row.latitude, row.longitude] += 1
        shift_x, shift_y = (0, 12, -12, 0, 0)[number % 5], (0, 0, 0, 12, -12)[number % 5]
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


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of the stages that are not empty, as names and texts."""
    rows = []
    for stage, values in settings.get("stages", {}).items():
        for name, value in values.items():
            if isinstance(value, dict) or value in (None, "", False, []):
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((f"{STAGES.get(stage, stage)}: {name.replace('_', ' ')}", text))
    if "gap_seconds" in settings:
        rows.append(("Gap between events", f"{settings['gap_seconds']:g} s"))
    return rows
