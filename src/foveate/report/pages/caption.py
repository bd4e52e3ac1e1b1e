"""The page of a captioning run: what became of every request, how long captions and answers are, and captions of the
same image side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import Distribution, parse_result
from foveate.report.captions import MEANINGS, NAMES
from foveate.report.charts import histogram, plot
from foveate.report.numbers import count, duration, money
from foveate.report.page import Page, command_text
from foveate.report.schema import CaptionResult
from foveate.report.words import plain

# What the reasons mean that a name alone does not tell.
REASONS = {
    "refused": "the model declined",
    "truncated": "the answer ends before its caption does; more tokens may help",
    "schema": "not the object that was asked for",
    "unparseable": "not the object that was asked for",
    "empty": "an answer without a caption",
    "timeout": "no answer in time, twice",
    "connection": "the server could not be reached",
    "too_long": "longer than the format allows; shortened once in vain",
    "too_short": "shorter than the format asks for",
    "cut_at_sentence": "shortened to the last sentence that fits",
    "alt_unusable": "the AltText is empty, a file name or too general to use: written like DSC",
    "repeats": "the same four words three times",
    "copied_alt": "nearly the words of the AltText",
    "prompt_leak": "repeats words of the prompt",
    "non_english": "looks like another language",
    "code_fence": "the answer stood in a code fence",
    "plain_text": "text instead of the object that was asked for",
    "surrounding_text": "other text around the answer",
    "trailing_comma": "mended",
    "whitespace_normalized": "white space inside was joined",
    "final error earlier": "asked again only with --retry-errors",
    "stopped before": "the same command asks for them",
    "done": "captioned before",
}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a captioning run's result.json (`schema.CaptionResult`)."""
    r = parse_result(CaptionResult, result)
    facts = [
        ("Model", r.model),
        ("Answered by", r.backend),
        ("Images", count(r.images)),
        ("Requests", count(sum(one.asked for one in r.formats.values()))),
        ("Time", duration(r.seconds)),
        ("Tokens in", count(sum(one.tokens_in for one in r.formats.values()))),
        ("Tokens out", count(sum(one.tokens_out for one in r.formats.values()))),
    ]
    if r.cost.get("total"):
        facts.append(("Cost", money(r.cost["total"])))
    return Page(
        "caption.html.j2",
        f"Captions of {r.collection}",
        {
            "r": r,
            "names": NAMES,
            "formats": {NAMES[kind]: MEANINGS[kind] for kind in ("alt", *r.formats) if kind in NAMES},
            "meanings": REASONS,
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
        spread: Distribution | None = getattr(made, field)
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
