"""Pages of captions and of the regions that they name: runs, audits, captioners, labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.caption.evaluation_results import CaptionerEvaluation, CaptionerResult
from foveate.caption.results import AuditImage, AuditResult, CaptionRunResult, RegionsResult
from foveate.core.errors import UserError
from foveate.core.results import Distribution, Region, ResultModel, parse_result
from foveate.records.caption_formats import ALT, CAPTION_FORMATS, MEANINGS, TITLES
from foveate.report import numbers, parts, sections, words
from foveate.report.blocks import Facts, Text, block_page
from foveate.report.charts import histogram, plot
from foveate.report.images import Overlay
from foveate.report.numbers import count, duration, money
from foveate.report.page import Page, command_text
from foveate.report.words import plain

# Captions side by side with marked assertions: shared by the pages of audits and of the tour.


MARKS = {"supported": "held", "contradicted": "contradicted", "unverifiable": "not decidable"}


class CaptionedImage(AuditImage):
    """An image of the tour: its audited captions, and the regions that its phrases were located at.

    Attributes:
        unusable: texts that are no caption, by the title of their format.
    """

    regions: list[Region] = []
    unusable: dict[str, str] = {}

    @property
    def overlays(self) -> list[Overlay]:
        """Return the boxes of its regions."""
        return [Overlay(region.box, "region") for region in self.regions]


class FormatNumbers(ResultModel):
    """Means over the `n` usable captions of a format; no numbers where there is none."""

    title: str
    n: int
    tokens: float | None = None
    ana: float | None = None
    held: float | None = None


class EncoderValue(ResultModel):
    title: str
    value: float


class EncoderNumbers(ResultModel):
    measure: str
    images: int
    trained_on: int
    captioned: int
    steps: int
    values: list[EncoderValue]


class AssertionTotals(ResultModel):
    """How many of `n` assertions the scene supports, and how many another scene does: the control."""

    n: int
    held: int
    held_by_another_scene: int


class TourCaptions(ResultModel):
    """The tour's captions.

    Attributes:
        reads_requests: the model was trained on caption requests. assertions: of the model's own captions.
    """

    model: str
    reads_requests: bool = True
    definition: str
    examples: list[CaptionedImage]
    formats: list[FormatNumbers]
    assertions: AssertionTotals | None = None
    encoder: EncoderNumbers


# Page of a captioning run: requests, lengths, latencies, captions side by side.


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


def build_caption(result: Mapping[str, Any], run_folder: Path) -> Page:
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
            "names": TITLES,
            "formats": {TITLES[kind]: MEANINGS[kind] for kind in (ALT, *r.formats) if kind in TITLES},
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
            name = TITLES.get(kind, plain(kind))
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


# Page of an audit: a table of all formats, then images with every assertion of their captions marked.


def _without_best(group: parts.TableGroup) -> parts.TableGroup:
    """Remove the marks of best cells: the longest format is not the best, nor the one with most contradictions."""
    lines = [replace(line, cells=[replace(cell, best=False) for cell in line.cells]) for line in group.lines]
    return replace(group, lines=lines)


def build_audit(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an audit's result.json (`AuditResult`)."""
    r = parse_result(AuditResult, result)
    facts = [("Images", numbers.count(r.sample.images)), ("Text tower's context", f"{r.context} tokens")]
    facts += [("Assertions split by", r.splitter), ("Split", r.sample.split or "all")]
    context = {
        "r": r,
        "facts": facts,
        "groups": [_without_best(group) for group in parts.table_groups(r.table, r.columns)],
        "written": [
            (column.title, ", ".join(f"{model} ({count})" for model, count in r.models.get(column.key, {}).items()))
            for column in r.columns
        ],
        "formats": {column.title: MEANINGS[column.key] for column in r.columns if column.key in MEANINGS},
        "marks": MARKS,
        "galleries": {
            name: [image for image in r.gallery if image.data == name]
            for name in dict.fromkeys(image.data for image in r.gallery)
        },
        "command": command_text(r.command),
    }
    return Page("audit.html.j2", r.title or f"Captions of {r.collection}, audited", context)


# Page of an evaluated captioner: obedience, lengths and accuracy, and held-out images with all captions.


DATA = {"scenes": "Generated scenes", "images": "Real images"}


def build_captioner(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of the result.json of an evaluated captioner."""
    r = parse_result(CaptionerResult, result)
    evaluation = r.evaluation or CaptionerEvaluation()
    facts = []
    if r.reads_requests is not None:
        facts.append(("Asked with", "the requests it was trained on" if r.reads_requests else "prompts"))
    if evaluation.obeys is not None:
        facts.append(("Every format obeyed by 95 %", "yes" if evaluation.obeys else "no"))
    if evaluation.lengths_rise is not None:
        facts.append(("Lengths rise, short to dense", "yes" if evaluation.lengths_rise else "no"))
    groups = [(title, [image for image in evaluation.samples if image.data == data]) for data, title in DATA.items()]
    context = {
        "facts": facts,
        "groups": parts.table_groups(evaluation.table, evaluation.columns),
        "columns": evaluation.columns,
        "samples": [(title, members) for title, members in groups if members],
        "formats": {kind: row.label for kind, row in CAPTION_FORMATS.items()},
        "split": evaluation.split,
        "command": command_text(r.command),
        "name": r.title or "A controllable captioner",
    }
    return Page("captioner.html.j2", str(context["name"]), context)


# Page of a labeling run: statuses of images, histograms of regions, and sample images.


STATUSES = {
    "ok": "With regions",
    "no_boxes": "No box detected",
    "no_phrases": "No phrase in the caption",
    "no_caption": "No caption",
    "decode_error": "Unreadable",
    "detector_error": "Detector failed",
}


def build_regions(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a labeling run's result.json (`RegionsResult`)."""
    r = parse_result(RegionsResult, result)
    charts = []
    for name, h in r.histograms.items():
        expected = len(h.counts) + 1
        # Checked here, because `histogram` raises a ValueError that names no field of result.json.
        if len(h.edges) != expected:
            raise UserError(
                f"result.json, field 'histograms.{name}': {len(h.counts)} counts need {expected} edges "
                f"(got {len(h.edges)})"
            )
        charts.append(plot(words.plain(name), histogram(h.edges, h.counts, title=words.plain(name), unit=h.unit)))
    facts = [("Images", count(r.images)), ("Regions", count(r.regions))]
    facts += [(STATUSES.get(name, words.plain(name)), count(number)) for name, number in r.status.items() if number]
    # Boxes that were known in advance must not be read as found by a detector.
    warning = "This detector is an oracle: its boxes were in the collection already. " if r.oracle else ""
    note = "Images with all regions of this recipe; the number is a region's score."
    return block_page(
        r.title or f"Regions of {r.collection or 'a collection'}",
        eyebrow="Regions",
        top=[Text(f"{warning}Phrases of the captions, located by {r.detector}."), Facts(facts)],
        sections=[
            sections.charts_section(charts, "Distributions"),
            sections.samples_section(RunImages(run_folder), r.samples, "Samples", note),
            sections.recipe_section({"model": r.model, "source of the rows": r.source, **r.recipe}),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "caption": build_caption,
    "audit": build_audit,
    "captioner": build_captioner,
    "regions": build_regions,
}
