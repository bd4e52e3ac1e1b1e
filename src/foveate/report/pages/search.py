"""The page of one search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.report.page import Page, command_text
from foveate.report.schema import SearchResult, read
from foveate.report.simple import simple_page


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a search's result.json (`schema.SearchResult`)."""
    r = read(SearchResult, result)
    return simple_page(
        "What was found",
        eyebrow="Search",
        facts=[("Model", r.model)] if r.model else [],
        searches=[r],
        command=command_text(r.command),
    )
