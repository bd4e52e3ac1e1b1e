"""Page of species predictions: taxa, hours, a map of rounded places, samples with boxes, accuracies where labeled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.charts import Series, histogram, line_chart, plot
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.parts import table_groups
from foveate.report.species import STAGES, draw_hours, draw_map
from foveate.species.results import SampleImage, SpeciesResult

KINDS = {
    "animal": "Animals",
    "blank": "Blank",
    "human": "People",
    "vehicle": "Vehicles",
    "unknown": "No answer",
    "unclassified": "Not readable",
}
_MAX_CLASSES = 60


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a result.json of predictions (`SpeciesResult`)."""
    r = parse_result(SpeciesResult, result)
    unit = "events" if r.events else "images"
    facts = [("Images", numbers.count(r.images)), ("Cameras", numbers.count(r.cameras))]
    # Without events there is one decision per image, so the number would only repeat that of images.
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
        "hours": draw_hours(r.taxa, unit),
        "map": draw_map(r.per_camera),
        "coverage": _coverage_chart(r),
        "scores": _score_chart(r),
        "samples": [(sample, _overlays(sample)) for sample in r.samples],
        # Only the most frequent ones, which keeps the page short; result.json has all.
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


def _coverage_chart(r: SpeciesResult) -> Markup | None:
    # A single confidence is a point, not a curve.
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


def _is_used(stage: str, stages: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a stage with these settings changes anything; see `prepare` of each."""
    values = stages[stage]
    by_rules = stages.get("rules", {}).get("rules", "none") != "none"
    return {
        "temperature": values.get("temperature") != 1,
        "prior": any(values.get(f"by_{part}") for part in ("place", "hour", "season")),
        "species_list": values.get("file") is not None,
        "pooling": values.get("method") != "none",
        "rules": by_rules,
        "rollup": bool(values.get("enabled")) and not by_rules,
        "threshold": bool(values.get("threshold")) and not by_rules,
    }.get(stage, True)


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings that are not empty of the stages that change something, as names and texts."""
    rows = []
    stages = settings.get("stages", {})
    for stage in (name for name in stages if _is_used(name, stages)):
        title = STAGES.get(stage, stage)
        for name, value in stages[stage].items():
            # A switch that is on is said by the other fields of its stage.
            if isinstance(value, dict) or value in (None, "", False, []) or name == "enabled":
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list) else "yes" if value is True else str(value)
            rows.append((title if name == stage else f"{title}: {name.replace('_', ' ')}", text))
    if "gap_seconds" in settings:
        rows.append(("Gap between events", f"{settings['gap_seconds']:g} s"))
    return rows
