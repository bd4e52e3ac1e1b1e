"""The page of a collection: records after preprocessing first, then counts, sizes, text lengths and quarantine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.results import Example, Histogram, ResultModel, parse_result
from foveate.report import words
from foveate.report.charts import histogram, plot
from foveate.report.examples import example_groups
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page


class Quarantined(ResultModel):
    """Number of images that were not imported for one reason, with an example."""

    reason: str
    count: int
    example: str | None = ""


class InspectResult(ResultModel):
    """result.json of `foveate inspect`."""

    kind: str
    title: str = ""
    summary: dict[str, Any] = {}
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    quarantine: list[Quarantined] = []
    command: str | list[str] = ""


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an inspection's result.json (`InspectResult`)."""
    r = parse_result(InspectResult, result)
    charts = []
    for name, h in r.histograms.items():
        # Checked here, because `histogram` raises a ValueError that names no field of result.json.
        if len(h.edges) != (num_edges := len(h.counts) + 1):
            raise UserError(f"result.json, field 'histograms.{name}': {len(h.counts)} counts need {num_edges} edges")
        title = words.plain(name)
        chart = histogram(h.edges, h.counts, title=title, unit=h.unit)
        charts.append(plot(title, chart))
    return simple_page(
        r.title or str(r.summary.get("name", "A collection")),
        eyebrow="Inspection",
        facts=_facts(r.summary),
        samples_first=True,
        summary=r.summary,
        charts=charts,
        charts_title="Distributions",
        samples=example_groups(r.samples),
        quarantine=r.quarantine,
        command=command_text(r.command),
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the totals that stand above the images; all other counts are below them."""
    totals = {"Images": summary.get("images")}
    for title, key in (("Texts", "texts"), ("Regions", "regions")):
        part = summary.get(key)
        totals[title] = part.get("count") if isinstance(part, Mapping) else part
    return [(title, count(value)) for title, value in totals.items() if isinstance(value, int)]
