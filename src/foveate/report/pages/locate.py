"""The page of a phrase located in one image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.report import parts
from foveate.report.page import Page, command_text
from foveate.report.simple import simple_page
from foveate.search.results import LocateResult


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a located phrase."""
    r = parse_result(LocateResult, result)
    return simple_page(
        f"Where is “{r.phrase}”?",
        eyebrow="Locate",
        lead="" if r.has_match or not r.reason else f"Not found: {r.reason}.",
        facts=[("Model", r.model)] if r.model else [],
        single=parts.locate_card(r, "head"),
        command=command_text(r.command),
    )
