"""Page of one explained image: its steps, the nearest taxa and the nearest training images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text
from foveate.report.species import format_time
from foveate.species.results import SpeciesExplanation


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an explanation (`SpeciesExplanation`)."""
    r = parse_result(SpeciesExplanation, result)
    overlays = [] if r.box is None else [Overlay(r.box, "default")]
    context = {"r": r, "time": format_time(r.time), "overlays": overlays, "command": command_text(r.command)}
    return Page("species_explain.html.j2", f"{r.answer}: {r.file}", context)
