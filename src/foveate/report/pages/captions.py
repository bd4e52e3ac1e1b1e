"""Pages of captions and of the regions that they name: runs, audits, captioners, labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from foveate.caption.evaluation_results import CaptionerEvaluation, CaptionerResult, EvaluatedImage
from foveate.caption.results import (
    AuditImage,
    AuditResult,
    CaptionRunResult,
    ExampleImage,
    RegionsResult,
)
from foveate.core.errors import UserError
from foveate.core.results import Distribution, Region, ResultModel, parse_result
from foveate.records.caption_formats import ALT, CAPTION_FORMATS, MEANINGS, TITLES
from foveate.report import parts, sections, words
from foveate.report.blocks import (
    Block,
    Cell,
    Charts,
    Drawn,
    Facts,
    Measures,
    Notes,
    Section,
    Table,
    Text,
    block_page,
    charts_of,
    measures_of,
)
from foveate.report.charts import histogram, plot
from foveate.report.images import Overlay, RunImages
from foveate.report.numbers import count, duration, money
from foveate.report.page import Page, draw
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
    images, tallies = RunImages(run_folder), r.formats.values()
    leads = {
        "Rendered from the truth of generated scenes to check the pipeline; not written by a model.": r.only_scenes,
        f"The run ended early: {r.failure}": r.failure,
        "The run was stopped; run the same command to resume.": r.stopped and not r.failure,
    }
    facts = [
        ("Model", r.model),
        ("Answered by", _name_other_models(r)),
        ("Backend", r.backend),
        ("Images", count(r.images)),
        ("Requests", count(sum(tally.requested for tally in tallies))),
        ("Time", duration(r.seconds)),
        ("Tokens in", count(sum(tally.tokens_in for tally in tallies))),
        ("Tokens out", count(sum(tally.tokens_out for tally in tallies))),
        # The total is 0 unless prices were given, and a local model has none.
        ("Cost", money(r.cost.total) if r.cost.total else ""),
        ("Revision", r.revision),
    ]
    rows = []
    for kind, t in r.formats.items():
        counts = (t.total, t.ok, t.repaired, sum(t.errors.values()), sum(t.skipped.values()))
        rows.append([TITLES.get(kind, kind), *map(count, counts)])
    meanings = [(TITLES[kind], MEANINGS[kind]) for kind in (ALT, *r.formats) if kind in TITLES]
    requests = Table(["Format", "in", "ok", "repaired", "errors", "skipped"], rows, meanings=meanings, printed=True)
    counted = (
        "One request is one image in one format. Skipped: captioned before, unreadable images, and requests that a "
        "stop left."
    )
    examples = charts_of([_draw_example(example, images) for example in r.examples], "list")
    lengths, latencies = _draw_spreads(r, "clip_tokens", "CLIP tokens"), _draw_spreads(r, "seconds", "s")
    window = (
        "CLIP tokens without the two special tokens; 75 fit the window. All captions of this model in the collection."
    )
    retries = "Seconds per caption, a retry included where there was one."
    return block_page(
        f"Captions of {r.collection}",
        eyebrow="Captions",
        heading=r.collection,
        top=[*(Text(lead) for lead, holds in leads.items() if holds), Facts(facts)],
        sections=[
            Section("counts", "Requests", [requests, *_list_reasons(r)], counted, "Counts"),
            Section("images", "The same image in every format", examples, "Drawn at random by the seed.", "Images"),
            Section("lengths", "Lengths of captions", lengths, window, "Lengths"),
            Section("latencies", "Latencies", latencies, retries, "Times"),
        ],
        command=r.command,
    )


def _name_other_models(r: CaptionRunResult) -> str:
    """Name who answered, with counts, unless that was only the requested model."""
    answered = sum((Counter(tally.answered_by) for tally in r.formats.values()), Counter[str]())
    return ", ".join(f"{name} ({count(n)})" for name, n in answered.items()) if set(answered) - {r.model} else ""


def _draw_example(example: ExampleImage, images: RunImages) -> Markup:
    rows = []
    for text in example.texts:
        tokens = "" if text.clip_tokens is None else f"{text.clip_tokens} tokens"
        chips = [Markup(' <span class="chip">{}</span>').format(plain(flag)) for flag in text.flags]
        rows.append((TITLES.get(text.kind, text.kind), tokens, Markup("").join([text.text, *chips])))
    rows = rows or [("no text", "", "–")]
    return draw("captioned", images, example.image, f"Image {example.key}", rows, key=example.key)


def _draw_spreads(r: CaptionRunResult, field: str, unit: str) -> list[Block]:
    charts = []
    for kind, captions in r.captions.items():
        spread: Distribution | None = getattr(captions, field)
        if spread is not None:
            name = TITLES.get(kind, plain(kind))
            title = f"{name}: median {spread.median:.3g} {unit}, 90 % within {spread.p05:.3g} to {spread.p95:.3g}"
            chart = histogram(spread.histogram.edges, spread.histogram.counts, title=title, unit=unit)
            charts.append(plot(title, chart))
    return charts_of(charts)


def _list_reasons(r: CaptionRunResult) -> Iterator[Table]:
    """List reasons with their count by format, most frequent first."""
    for title, head in (("Errors", "Error"), ("Flags", "Flag"), ("Skipped", "Reason")):
        counts: list[dict[str, int]] = [getattr(tally, title.lower()) for tally in r.formats.values()]
        # The outer sort is stable, so reasons with equal counts stay in the order of their names.
        names = sorted(sorted(set().union(*counts)), key=lambda name: -sum(each.get(name, 0) for each in counts))
        rows = [
            [Cell(plain(name), REASONS.get(name, "")), *(count(n) if (n := each.get(name)) else "" for each in counts)]
            for name in names
        ]
        if rows:
            yield Table([head, *(TITLES.get(kind, kind) for kind in r.formats)], rows, title=title, printed=True)


# Page of an audit: a table of all formats, then images with every assertion of their captions marked.


def _without_best(group: parts.TableGroup) -> parts.TableGroup:
    """Remove the marks of best cells: the longest format is not the best, nor the one with most contradictions."""
    lines = [replace(line, cells=[replace(cell, best=False) for cell in line.cells]) for line in group.lines]
    return replace(group, lines=lines)


AUDITED = (
    ("Assertion", "one statement of a caption; ANA is their mean number per caption"),
    ("Control", "each caption with another image: what holds there holds by chance"),
    ("Exact duplicates", "captions with exactly the text of an earlier one"),
    ("Commonest opening", "captions that begin with the most frequent three words"),
)


def build_audit(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an audit's result.json (`AuditResult`)."""
    r = parse_result(AuditResult, result)
    lead = "Length, richness and truth belong together: more assertions are worth nothing if they do not hold."
    oracle = Markup(
        "<b>Some captions are the scene-oracle’s:</b> rendered from the truth of generated scenes, to check the "
        "machinery. They say nothing about a captioner."
    )
    facts = [("Images", count(r.sample.images)), ("Text tower's context", f"{r.context} tokens")]
    facts += [("Assertions split by", r.splitter), ("Entities found by", r.tagger), ("Split", r.sample.split or "all")]
    groups = [_without_best(group) for group in parts.table_groups(r.table, r.columns)]
    meanings = [(column.title, MEANINGS[column.key]) for column in r.columns if column.key in MEANINGS]
    lacking = r.sample.without_all_formats
    how = [f"{name.capitalize()}: {judge.definition}" for name, judge in r.judges.items()]
    how += [
        f"Assertions: Split by {r.splitter}. A number from one splitter is never compared with a number from another.",
        f"The same images for all formats: {count(r.sample.images)} images that have every format"
        + (f"; {count(lacking)} lack one and are left out" if lacking else "")
        + ". Their keys are in result.json.",
    ]
    written = []
    for column in r.columns:
        models = ", ".join(f"{model} ({n})" for model, n in r.models.get(column.key, {}).items())
        written.append([column.title, models or "the data set or people"])
    writers = Table(["Format", "Written by (captions of the sample)"], written, left=(1,), printed=True)
    images, by_data = RunImages(run_folder), dict[str, list[Markup]]()
    for image in r.gallery:
        by_data.setdefault(image.data, []).append(draw("audited", images, image, MARKS, template="captions.html.j2"))
    gallery = [Charts(drawn, "list", name.capitalize() * (len(by_data) > 1)) for name, drawn in by_data.items()]
    marks = Drawn(draw("legend", MARKS, template="captions.html.j2"))
    return block_page(
        r.title or f"Captions of {r.collection}, audited",
        eyebrow="Audit",
        top=[Text(lead), *([Text(oracle, "note")] if r.scene_oracle else []), Facts(facts)],
        sections=[
            Section("numbers", "The numbers", [Measures(groups, r.interval, [*meanings, *AUDITED])], link="Numbers"),
            Section("method", "How it was judged", [Notes(how), writers]),
            Section("gallery", "Side by side", [marks, *gallery], "Every assertion on its own line."),
        ],
        command=r.command,
    )


# Page of an evaluated captioner: obedience, lengths and accuracy, and held-out images with all captions.


DATA = {"scenes": "Generated scenes", "images": "Real images"}
VERDICTS_LEGEND = Markup(
    '<span class="said supported">holds</span> <span class="said contradicted">is contradicted by the scene’s '
    'truth</span> <span class="said unverifiable">cannot be decided</span>'
)


def build_captioner(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of the result.json of an evaluated captioner."""
    r = parse_result(CaptionerResult, result)
    evaluation, images = r.evaluation or CaptionerEvaluation(), RunImages(run_folder)
    answers = {None: "", True: "yes", False: "no"}
    facts = [
        ("Asked with", {None: "", True: "the requests it was trained on", False: "prompts"}[r.reads_requests]),
        ("Every format obeyed by 95 %", answers[evaluation.obeys]),
        ("Lengths rise, short to dense", answers[evaluation.lengths_rise]),
    ]
    samples: list[Block] = [Text(VERDICTS_LEGEND, "note")] if evaluation.samples else []
    for data, title in DATA.items():
        drawn = [_draw_captions(image, images) for image in evaluation.samples if image.data == data]
        samples += charts_of(drawn, "list", title)
    lead = (
        f"Held-out images{evaluation.split and f' of the split {evaluation.split}'}, drawn by the seed, not chosen. On "
        "generated scenes each statement is marked by the scene’s truth; real images have no truth to compare with."
    )
    interval = "95 % intervals, bootstrap over images; the tick of obedience is the 95 % that are asked for"
    measured = measures_of(evaluation.table, evaluation.columns, interval)
    return block_page(
        r.title or "A controllable captioner",
        eyebrow="Captioner",
        top=[Facts(facts)],
        sections=[
            Section("captions", "The same image in every format", samples, lead, "Captions"),
            Section("numbers", "The numbers", measured, link="Numbers"),
        ],
        command=r.command,
    )


def _draw_captions(image: EvaluatedImage, images: RunImages) -> Markup:
    rows = [("AltText", "", Markup('<p class="noisy">{}</p>').format(image.alt or "(none)"))]
    assertion = Markup('<span class="said {0}" title="{0}">{1}.</span>')
    for kind, row in CAPTION_FORMATS.items():
        if (caption := image.captions.get(kind)) is not None:
            marked = Markup(" ").join(assertion.format(verdict, text) for text, verdict in caption.assertions)
            tokens = f"{caption.tokens} tokens{'' if caption.obeys else ', disobeys'}"
            rows.append((row.label, tokens, marked or escape(caption.text)))
    return draw("captioned", images, image.image, f"Image with the AltText: {image.alt}", rows, size=360)


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
    facts += [("Labeled before", count(r.done_before))] if r.done_before else []
    facts += [("Source of the rows", r.source), ("Recipe", r.recipe_hash)]
    failed = sum(number for name, number in r.status.items() if name.endswith("_error"))
    again = [f"{failed:,} images failed; the same command tries them again."] if failed else []
    again += ["The run was stopped; run the same command to resume."] if r.stopped else []
    # Boxes that were known in advance must not be read as found by a detector.
    warning = "This detector is an oracle: its boxes were in the collection already. " if r.oracle else ""
    of_samples = "Images with all regions of this recipe; the number is a region's score."
    return block_page(
        r.title or f"Regions of {r.collection or 'a collection'}",
        eyebrow="Regions",
        top=[Text(f"{warning}Phrases of the captions, located by {r.detector}."), Facts(facts), Notes(again)],
        sections=[
            sections.charts_section(charts, "Distributions"),
            sections.samples_section(RunImages(run_folder), r.samples, "Samples", of_samples),
            sections.recipe_section({"model": r.model, **r.recipe}),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "caption": build_caption,
    "audit": build_audit,
    "captioner": build_captioner,
    "regions": build_regions,
}
