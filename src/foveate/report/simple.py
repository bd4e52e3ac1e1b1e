"""The frame of the small pages (all but the tour): one template, optional blocks."""

from __future__ import annotations

from typing import Any

from foveate.report.images import Overlay
from foveate.report.page import Page

SECTIONS = {
    "searches": ("search", "Search"),
    "summary": ("summary", "Content"),
    "groups": ("numbers", "Numbers"),
    "charts": ("charts", "Charts"),
    "where": ("where", "Where is"),
    "which": ("which", "Which box"),
    "samples": ("samples", "Samples"),
    "quarantine": ("quarantine", "Quarantine"),
    "recipe": ("recipe", "Recipe"),
}


def simple_page(title: str, *, eyebrow: str, **blocks: Any) -> Page:
    """Return a page of the given blocks; an unknown block name is a programming error."""
    defaults: dict[str, Any] = {
        "lead": "",
        "facts": [],
        "single": None,
        "searches": [],
        "titles": {},
        "summary": {},
        "groups": [],
        "columns": [],
        "interval_text": "",
        "charts": [],
        "charts_title": "Charts",
        "where": [],
        "rules": [],
        "default": "head",
        "which": [],
        "samples": [],
        "samples_first": False,
        "samples_title": "As the model sees them",
        "samples_note": "Records after preprocessing: cropped, scaled and padded, with their boxes moved along.",
        "quarantine": None,
        "recipe": {},
        "command": "",
    }
    # The template would silently ignore a block with a misspelled name.
    assert set(blocks) <= set(defaults), set(blocks) - set(defaults)
    context = {**defaults, **blocks}
    # An empty quarantine is a result, too: nothing was refused.
    empty_but_shown = ["quarantine"] if context["quarantine"] is not None else []
    visible = [entry for key, entry in SECTIONS.items() if context[key] or key in empty_but_shown]
    if context["samples_first"]:
        visible.sort(key=lambda section: section != SECTIONS["samples"])
    context.update(eyebrow=eyebrow, sections=visible, overlay=Overlay)
    return Page("simple.html.j2", title, context)
