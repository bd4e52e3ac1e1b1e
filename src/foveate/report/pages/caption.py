"""The page of a captioning run: what became of every request, how long captions and answers are, and captions of the
same picture side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.report.charts import histogram, plot
from foveate.report.numbers import count, duration
from foveate.report.page import Page, command_text
from foveate.report.schema import CaptionResult, Spread, read
from foveate.report.words import plain

# What each format is called.
NAMES = {"alt": "AltText", "ssc": "SSC", "dsc": "DSC", "dsc_plus": "DSC+", "afc": "AFC"}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a captioning run's result.json (`schema.CaptionResult`)."""
    r = read(CaptionResult, result)
    facts = [
        ("Model", r.model),
        ("Answered by", r.backend),
        ("Pictures", count(r.pictures)),
        ("Requests", count(sum(one.asked for one in r.formats.values()))),
        ("Time", duration(r.seconds)),
        ("Tokens in", count(sum(one.tokens_in for one in r.formats.values()))),
        ("Tokens out", count(sum(one.tokens_out for one in r.formats.values()))),
    ]
    if r.cost.get("total"):
        facts.append(("Cost", f"{r.cost['total']:.2f}"))
    return Page(
        "caption.html.j2",
        f"Captions of {r.collection}",
        {
            "r": r,
            "names": NAMES,
            "facts": [(name, value) for name, value in facts if value],
            "lengths": _charts(r, "clip_tokens", "CLIP tokens"),
            "latencies": _charts(r, "seconds", "s"),
            "flags": _reasons({kind: one.flags for kind, one in r.formats.items()}),
            "errors": _reasons({kind: one.errors for kind, one in r.formats.items()}),
            "skipped": _reasons({kind: one.skipped for kind, one in r.formats.items()}),
            "command": command_text(r.command),
        },
    )


def _charts(r: CaptionResult, field: str, unit: str) -> list[Markup]:
    charts = []
    for kind, made in r.made.items():
        spread: Spread | None = getattr(made, field)
        if spread is not None:
            name = NAMES.get(kind, plain(kind))
            title = f"{name}: median {spread.median:.3g} {unit}, 90 % within {spread.p05:.3g} to {spread.p95:.3g}"
            chart = histogram(spread.histogram.edges, spread.histogram.counts, title=title, unit=unit)
            charts.append(plot(title, chart))
    return charts


def _reasons(by_kind: Mapping[str, Mapping[str, int]]) -> list[tuple[str, dict[str, int]]]:
    """Reason -> count by format, most frequent first."""
    names = sorted({name for counts in by_kind.values() for name in counts})
    rows = [(name, {kind: counts.get(name, 0) for kind, counts in by_kind.items()}) for name in names]
    return sorted(rows, key=lambda row: -sum(row[1].values()))
