"""The page of one search: the query and a gallery of its hits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import Query, parse_result
from foveate.report.images import Overlay
from foveate.report.numbers import count
from foveate.report.page import Page, command_text
from foveate.search.results import SearchResult

KINDS = {"text": "a text", "image": "an image", "box": "a box in an image"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a search."""
    r = parse_result(SearchResult, result)
    facts = [(f"{name.capitalize()} searched", count(number)) for name, number in r.searched.items() if number]
    facts += [(name, value) for name, value in (("Collection", r.collection), ("Backend", r.backend)) if value]
    query_file = Path(r.file).name if r.file else ""
    what = f"this box in {query_file}" if query_file and r.query.box else query_file or "this"
    return Page(
        "search.html.j2",
        f"Search: {r.query.text or query_file}" if r.query.text or query_file else "Search results",
        {
            "search": r,
            "heading": r.query.text or f"What is like {what}?",
            "query_file": query_file,
            "query_parts": _query_parts(r.query),
            "sum": _weighted_sum(r.query),
            "facts": facts,
            "model": r.model,
            "command": command_text(r.command),
            "overlay": Overlay,
            "file_uri": file_uri,
            "split_path": split_path,
        },
    )


def split_path(path: str) -> tuple[str, str]:
    """Split a path or key into its folder, "" without one, and the file's name.

    >>> split_path("/photos/2024/a.jpg"), split_path("a.jpg")
    (('/photos/2024/', 'a.jpg'), ('', 'a.jpg'))
    """
    position = max(path.rfind("/"), path.rfind("\\")) + 1
    return path[:position], path[position:]


def file_uri(path: str) -> str:
    """Return the link to a file of this machine; "" unless the path is absolute."""
    # A relative link would be resolved against the folder of the page.
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
