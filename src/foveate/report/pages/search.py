"""The page of one search: what was asked, and a gallery of what was found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Query, parse_result
from foveate.report.images import Overlay
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.report.schema import SearchResult

KINDS = {"words": "words", "image": "an image", "box": "a box in an image"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a search's result.json (`schema.SearchResult`)."""
    r = parse_result(SearchResult, result)
    facts = [(f"{name.capitalize()} searched", count(number)) for name, number in r.searched.items() if number]
    facts += [(name, value) for name, value in (("Collection", r.collection), ("Found by", r.backend)) if value]
    return Page(
        "search.html.j2",
        f"Found: {r.query.text}" if r.query.text else "What was found",
        {
            "search": r,
            "asked_with": _asked_with(r.query),
            "sum": _sum(r.query),
            "facts": facts,
            "model": r.model,
            "command": command_text(r.command),
            "overlay": Overlay,
        },
    )


def _asked_with(query: Query) -> str:
    """What the question is made of: "words and a box in an image"."""
    kind = KINDS.get(query.kind, query.kind)
    return f"words and {kind}" if query.text and query.kind != "words" else kind


def _sum(query: Query) -> str:
    """The weighted sum in words, where the query has several parts."""
    if not query.weights:
        return ""
    named = [("negative", query.negative or "") if name == "negative" else (name, "") for name in query.weights]
    terms = [
        f"{'− ' if name == 'negative' else '+ '}{query.weights[name]:g} × {text or KINDS.get(name, name)}"
        for name, text in named
    ]
    return " ".join(terms).removeprefix("+ ")
