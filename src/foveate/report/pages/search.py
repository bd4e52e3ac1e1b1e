"""The page of one search: the query and a gallery of its hits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Query, parse_result
from foveate.pretrain.results import SearchResult
from foveate.report.images import Overlay
from foveate.report.numbers import count
from foveate.report.page import Page, command_text

KINDS = {"text": "a text", "image": "an image", "box": "a box in an image"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a search."""
    r = parse_result(SearchResult, result)
    facts = [(f"{name.capitalize()} searched", count(number)) for name, number in r.searched.items() if number]
    facts += [(name, value) for name, value in (("Collection", r.collection), ("Backend", r.backend)) if value]
    return Page(
        "search.html.j2",
        f"Search: {r.query.text}" if r.query.text else "Search results",
        {
            "search": r,
            "query_parts": _query_parts(r.query),
            "sum": _weighted_sum(r.query),
            "facts": facts,
            "model": r.model,
            "command": command_text(r.command),
            "overlay": Overlay,
            "file_uri": file_uri,
        },
    )


def file_uri(path: str) -> str:
    """Return the link to a file of this machine; "" unless the path is absolute."""
    return Path(path).as_uri() if Path(path).is_absolute() else ""


def _query_parts(query: Query) -> str:
    """Name the parts of the query: "a text and a box in an image"."""
    kind = KINDS.get(query.kind, query.kind)
    return f"a text and {kind}" if query.text and query.kind != "text" else kind


def _weighted_sum(query: Query) -> str:
    """Write out the weighted sum; empty for a query of one part."""
    terms = []
    for name, weight in query.weights.items():
        sign, part = ("−", query.negative) if name == "negative" else ("+", KINDS.get(name, name))
        terms.append(f"{sign} {weight:g} × {part}")
    return " ".join(terms).removeprefix("+ ")
