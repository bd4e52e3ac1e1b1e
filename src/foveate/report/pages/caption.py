"""Page of a captioning run: requests, lengths, latencies, captions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.caption.results import CaptionRunResult
from foveate.core.results import Distribution, parse_result
from foveate.report.captions import MEANINGS, NAMES
from foveate.report.charts import histogram, plot
from foveate.report.numbers import count, duration, money
from foveate.report.page import Page, command_text
from foveate.report.words import plain

# Explanations of reasons whose name is not enough.
REASONS = {
    "refused": "the model declined",
    "truncated": "the response ends before its caption does; more tokens may help",
    "schema": "JSON, but not the requested object",
    "unparseable": "neither JSON nor a plain sentence",
    "repeated": "one word five times in a row",
    "markup": "tags of a web page or script instead of a sentence",
    "empty": "a response without a caption",
    "timeout": "no response in time, twice",
    "connection": "the server could not be reached",
    "too_long": "longer than the format allows",
    "too_short": "shorter than the format asks for",
    "cut_at_sentence": "shortened to the last sentence that fits",
    "alt_unusable": "the AltText is empty, a file name or too general to use: written like DSC",
    "repeats": "the same four words three times",
    "copied_alt": "nearly the same words as the AltText",
    "prompt_leak": "repeats the wording of the prompt",
    "non_english": "looks like another language",
    "code_fence": "the response was in a code fence",
    "plain_text": "plain text instead of JSON",
    "surrounding_text": "other text around the JSON",
    "trailing_comma": "a comma before a closing bracket, removed",
    "whitespace_normalized": "line breaks or several blanks, joined",
    "final error earlier": "retried only with --retry-errors",
    "stopped before": "run the same command to request them",
    "done": "captioned before",
}


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page from result.json of a captioning run."""
    r = parse_result(CaptionRunResult, result)
    facts = [
        ("Model", r.model),
        ("Backend", r.backend),
        ("Images", count(r.images)),
        ("Requests", count(sum(tally.requested for tally in r.formats.values()))),
        ("Time", duration(r.seconds)),
        ("Tokens in", count(sum(tally.tokens_in for tally in r.formats.values()))),
        ("Tokens out", count(sum(tally.tokens_out for tally in r.formats.values()))),
    ]
    # The total is 0 unless prices were given, and a local model has none.
    if r.cost.total:
        facts.append(("Cost", money(r.cost.total)))
    return Page(
        "caption.html.j2",
        f"Captions of {r.collection}",
        {
            "r": r,
            "names": NAMES,
            "formats": {NAMES[kind]: MEANINGS[kind] for kind in ("alt", *r.formats) if kind in NAMES},
            "meanings": REASONS,
            "facts": [(name, value) for name, value in facts if value],
            "lengths": _build_charts(r, "clip_tokens", "CLIP tokens"),
            "latencies": _build_charts(r, "seconds", "s"),
            "flags": _sort_reasons({kind: tally.flags for kind, tally in r.formats.items()}),
            "errors": _sort_reasons({kind: tally.errors for kind, tally in r.formats.items()}),
            "skipped": _sort_reasons({kind: tally.skipped for kind, tally in r.formats.items()}),
            "command": command_text(r.command),
        },
    )


def _build_charts(r: CaptionRunResult, field: str, unit: str) -> list[Markup]:
    charts = []
    for kind, captions in r.captions.items():
        spread: Distribution | None = getattr(captions, field)
        if spread is not None:
            name = NAMES.get(kind, plain(kind))
            title = f"{name}: median {spread.median:.3g} {unit}, 90 % within {spread.p05:.3g} to {spread.p95:.3g}"
            chart = histogram(spread.histogram.edges, spread.histogram.counts, title=title, unit=unit)
            charts.append(plot(title, chart))
    return charts


def _sort_reasons(by_kind: Mapping[str, Mapping[str, int]]) -> list[tuple[str, dict[str, int]]]:
    """List reasons with their count by format, most frequent first."""
    names = sorted({name for counts in by_kind.values() for name in counts})
    rows = [(name, {kind: counts.get(name, 0) for kind, counts in by_kind.items()}) for name in names]
    # The sort is stable, so reasons with equal counts stay in the order of their names.
    return sorted(rows, key=lambda row: -sum(row[1].values()))
