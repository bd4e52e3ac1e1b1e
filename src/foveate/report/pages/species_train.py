"""Page of a species training: links and their losses, curves, classes and their images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import parts
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page
from foveate.species.results import SpeciesTrainResult

_TITLES = {"species": "Species", "parent": "Taxonomy", "location": "Places", "time": "Hours"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training (`SpeciesTrainResult`)."""
    r = parse_result(SpeciesTrainResult, result)
    facts = [("Images", count(r.images)), ("Cameras", count(r.cameras)), ("Classes", count(len(r.classes)))]
    facts += [("Validation images", count(r.validation_images))] if r.validation_images else []
    facts += [("Cropped to a box", count(r.cropped))] if r.cropped else []
    facts += [(name.replace("_", " "), f"{value:.3f}") for name, value in r.selection.items() if value is not None]
    links = {}
    for entry in r.passes:
        loss = "" if entry.loss is None else f", loss {entry.loss:.4f}"
        chance = "" if entry.chance is None else f" (chance {entry.chance:.4f})"
        text = f"{entry.links:,} links, {entry.candidates:,} candidates, {entry.steps:,} steps an epoch{loss}{chance}"
        links[_TITLES.get(entry.relation, entry.relation)] = text
    summary: dict[str, Any] = {"links": links} if links else {}
    summary["training images of a class"] = {
        entry.taxon or entry.label: entry.images for entry in sorted(r.classes, key=lambda entry: -entry.images)
    }
    if r.left_out:
        summary["left out"] = dict(r.left_out)
    curves = parts.curves({"training": parts.read_metrics(run_folder, r.curves)}) if r.curves else []
    contexts = ", ".join(r.contexts) if r.contexts else "the species alone"
    stopped = "" if r.status == "finished" else "Stopped: the same command resumes. "
    return simple_page(
        r.title or "Species training",
        eyebrow="Species training",
        lead=f"{stopped}Links: {contexts}. Places and hours are supervision: the model sees the image alone.",
        facts=facts,
        summary=summary,
        charts=curves,
        charts_title="Curves",
        recipe=r.recipe,
        command=command_text(r.command),
    )
