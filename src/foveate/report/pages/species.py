"""Pages of `foveate species`: predictions, checks, explanations, events to review, trainings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from foveate.core.plugins import load_table
from foveate.core.results import BoxValues, parse_result
from foveate.report import parts, sections
from foveate.report.blocks import (
    Block,
    Drawn,
    Facts,
    Measures,
    Notes,
    Section,
    Text,
    block_page,
    charts_of,
    columns_of,
)
from foveate.report.charts import Scale, Series, histogram, line_chart, nice_ticks, plot, svg_text, tick_below
from foveate.report.images import Overlay, RunImages
from foveate.report.numbers import count, percent
from foveate.report.page import Page, draw
from foveate.report.parts import table_groups
from foveate.species.results import (
    CameraRow,
    CheckFinding,
    SpeciesCheckResult,
    SpeciesExplanation,
    SpeciesResult,
    SpeciesReviewResult,
    SpeciesTrainResult,
    TaxonRow,
)

# What pages about species share: names of stages, a map of rounded places, hours of the clock.


def stage_title(stage: str) -> str:
    """Return the title of a stage of decisions by its name; of one that is not installed here, the name."""
    if stage == "classifier":
        return "Model alone"
    kind = load_table("foveate.species.stages", "STAGES").get(stage)
    return kind.title or stage.replace("_", " ").capitalize() if kind else stage


_MAX_HOUR_CHARTS = 6


def format_time(time: str) -> str:
    """Write a time with dashes in its date and a blank behind it; EXIF has colons there, ISO 8601 a T."""
    # By regular expression, so that both forms of a date match and an offset stays as it was written.
    return re.sub(r"^(\d{4})[:-](\d\d)[:-](\d\d)T?", r"\1-\2-\3 ", time).replace("  ", " ").rstrip()


def draw_hours(taxa: Sequence[TaxonRow], unit: str, *, count: int = _MAX_HOUR_CHARTS) -> list[Markup]:
    """Draw the hours of the clock at which the most frequent animals were photographed.

    Args:
        unit: of the decisions, "events" or "images".
        count: number of charts.
    """
    charts = []
    # Without a trusted clock an animal has no hours, and an empty chart would look like no activity.
    for row in [row for row in taxa if row.kind == "animal" and len(row.hours) == 24 and sum(row.hours)][:count]:
        known = sum(row.hours)
        title = f"{row.name}, {known:,} {unit if known > 1 else unit.removesuffix('s')}"
        charts.append(plot(title, histogram(list(range(25)), row.hours, title=title, unit="hour of the clock")))
    return charts


def _degree_ticks(degrees: Sequence[float], *, limit: int) -> list[float]:
    """Return ticks around degrees of latitude or longitude; there are none beyond the poles or the date line."""
    ticks = nice_ticks(min(degrees), max(degrees), num_ticks=4)
    # A set, because several ticks beyond a pole are clamped to the same value.
    return sorted({min(max(tick, -limit), limit) for tick in ticks})


def draw_map(cameras: Sequence[CameraRow], *, width: int = 440, height: int = 330) -> Markup | None:
    """Draw cameras at their rounded places, dots by the number of images; None where no place is in the result."""
    placed = [row for row in cameras if row.latitude is not None and row.longitude is not None]
    if not placed:
        return None
    latitudes = [row.latitude for row in placed if row.latitude is not None]
    longitudes = [row.longitude for row in placed if row.longitude is not None]
    x_ticks, y_ticks = _degree_ticks(longitudes, limit=180), _degree_ticks(latitudes, limit=90)
    left, right, top, bottom = 56, width - 20, 16, height - 36
    x_of, y_of = Scale(x_ticks[0], x_ticks[-1], left, right), Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(f"Map of {len(placed)} cameras, places rounded")}">'
    ]
    for tick in x_ticks:
        parts.append(f'<line class="rule" x1="{x_of(tick):.1f}" x2="{x_of(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(tick_below(x_of(tick), bottom + 20, f"{tick:g}°", width=width))
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(svg_text(left - 8, y_of(tick) + 4, f"{tick:g}°", anchor="end"))
    max_images = max(row.images for row in placed)
    # Cameras of one rounded place are drawn around it, the largest first, so that none hides another.
    shared: dict[tuple[float | None, float | None], int] = {}
    for row in sorted(placed, key=lambda row: -row.images):
        assert row.latitude is not None
        assert row.longitude is not None
        number = shared.setdefault((row.latitude, row.longitude), 0)
        shared[row.latitude, row.longitude] += 1
        shift_x, shift_y = (0, 12, -12, 0, 0)[number % 5], (0, 0, 0, 12, -12)[number % 5]
        # The area of a dot, not its radius, says how many images there are.
        radius = 3.5 + 7 * (row.images / max_images) ** 0.5
        x = min(max(x_of(row.longitude) + shift_x, left + radius), right - radius)
        y = min(max(y_of(row.latitude) + shift_y, top + radius), bottom - radius)
        label = f"{row.camera}: {row.images:,} images" + (f", mostly {row.top}" if row.top else "")
        parts.append(
            f'<circle class="dot s1" fill-opacity=".7" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(label)}</title></circle>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))


KINDS = {
    "animal": "Animals",
    "blank": "Blank",
    "human": "People",
    "vehicle": "Vehicles",
    "unknown": "No answer",
    "unclassified": "Not readable",
}
_MAX_CLASSES = 60
# Taxa, and nearest taxa and images, in the terminal.
_MAX_PRINTED, _MAX_NEAR = 10, 5


def build_species(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a result.json of predictions (`SpeciesResult`)."""
    r = parse_result(SpeciesResult, result)
    unit = "events" if r.events else "images"
    facts = [("Images", count(r.images)), ("Cameras", count(r.cameras))]
    # Without events there is one decision per image, so the number would only repeat that of images.
    facts += [(f"Decisions ({unit})", count(r.decisions))] if r.events else []
    facts += [(KINDS.get(name, name), count(number)) for name, number in r.counts.items() if number]
    facts += [("Labeled images", count(r.labels))] if r.labels else []
    species = sum(row.rank in ("species", "subspecies") for row in r.taxa)
    title = r.title or (f"{species} species at {r.cameras} cameras" if species else f"{r.images:,} images")
    title = f"{r.labels:,} labeled images of {r.cameras} cameras" if r.evaluation else title
    coverage, scores, places = _coverage_chart(r), _score_chart(r), draw_map(r.per_camera)
    hours, samples = draw_hours(r.taxa, unit), [(sample, _overlays(sample.box)) for sample in r.samples]
    taxa = columns_of(
        r.taxa,
        [
            ("Taxon", lambda row: draw("taxon", row.name, row.rank)),
            ("Rank", lambda row: row.rank or "–"),
            (unit.capitalize(), lambda row: count(row.decisions)),
            ("Mean probability", lambda row: "–" if row.kind in ("unknown", "unclassified") else f"{row.score:.2f}"),
        ],
        left=[1],
        printed=r.evaluation is None,
        max_printed=_MAX_PRINTED,
    )
    doubts = r.findings or r.clocks or r.places or r.repeated or r.failures
    digits = r.coordinate_digits
    rounded = f"Places are rounded to {digits} decimal{'' if digits == 1 else 's'} of a degree."
    of_taxa = charts_of([scores] if scores and not coverage else [])
    return block_page(
        title,
        eyebrow="Evaluation of species" if r.evaluation else "Species",
        top=[Text(_lead(r)), Facts(facts)],
        sections=[
            Section(
                "numbers",
                "Against the labels",
                _list_measured(r, unit, [chart for chart in (coverage, scores) if chart and coverage]),
                "Of images with a label that the model knows. Accuracy alone says little where many images are empty.",
                "Numbers",
            ),
            Section("taxa", "What was decided", [taxa, *of_taxa], link="Taxa"),
            Section(
                "samples",
                "Images",
                [Drawn(_draw("samples", RunImages(run_folder), samples))] if samples else [],
                "The surest of each answer in turn. The box is what the model looked at; open the steps to see what "
                "each stage did.",
            ),
            Section(
                "hours",
                "Hours",
                [*charts_of(hours), Drawn(_draw("hours", r))] if hours else [],
                "By the clock of the camera as it is written; hours that are not trusted are left out.",
            ),
            Section(
                "cameras",
                "Cameras",
                [Drawn(_draw("cameras", r, unit, places))] if r.per_camera else [],
                rounded if places else "Places are not on this page; --coordinate-digits draws a map of rounded ones.",
            ),
            Section(
                "doubts",
                "Hints",
                [Drawn(_draw("hints", r))] if doubts else [],
                "For a person who knows the cameras. Nothing was changed.",
            ),
            Section(
                "settings", "How it was decided", [Drawn(_draw("settings", r, _settings(r.settings)))], link="Settings"
            ),
        ],
        command=r.command,
    )


_draw = partial(draw, template="species.html.j2")


def _list_measured(r: SpeciesResult, unit: str, charts: list[Markup]) -> list[Block]:
    """Return what was measured against labels; nothing without labels."""
    if r.evaluation is None or not r.evaluation.table:
        return []

    sentences = [f"{note}." for note in r.notes]
    left_out = {"Left out, because the model has no such class": r.unknown_labels, "Without a label": r.left_out}
    for what, counts in left_out.items():
        if counts:
            sentences.append(f"{what}: {', '.join(f'{name} ({count(number)})' for name, number in counts.items())}.")
    stages = columns_of(
        r.stages,
        [
            ("After", lambda row: stage_title(row.stage)),
            (unit.capitalize(), lambda row: count(row.total)),
            ("Named", lambda row: percent(row.named / row.total if row.total else None)),
            ("of those right", lambda row: percent(row.right / row.named if row.named else None)),
            ("to the class itself", lambda row: percent(row.exact / row.named if row.named else None)),
        ],
        title="What each stage changed",
        note="Right: the label or a group that it belongs to, such as Felidae for an ocelot. Before pooling, the image "
        "that shows an event best stands for it.",
        printed=True,
    )
    covered = (
        "Of the images whose best class is at least as probable as a threshold: how many those are, and how many of "
        "them are right."
    )
    return [
        Measures(table_groups(r.evaluation.table, r.evaluation.columns), r.evaluation.interval),
        Notes(sentences),
        *([*charts_of(charts), Text(covered, "note")] if charts else []),
        *([stages] if r.stages else []),
        # Only the most frequent ones, which keeps the page short; result.json has all.
        Drawn(_draw("classes", r, r.classes[:_MAX_CLASSES])),
    ]


def _lead(r: SpeciesResult) -> str:
    if r.lead:
        return r.lead
    seen = f"{r.cropped:,} of {r.images:,} images were cropped to a box" if r.view == "crop" else "Whole images"
    failed = f"; {r.failed:,} could not be read and are listed below" if r.failed else ""
    return f"{seen}{failed}. A name is the most specific taxon that is likely enough."


def _overlays(box: BoxValues | None) -> list[Overlay]:
    return [] if box is None else [Overlay(box, "default")]


def _coverage_chart(r: SpeciesResult) -> Markup | None:
    # A single confidence is a point, not a curve.
    if r.coverage is None or len(r.coverage.coverage) < 2:
        return None
    points = list(zip(r.coverage.coverage, r.coverage.precision, strict=True))
    title = "Precision against coverage"
    chart = line_chart([Series("model", points)], title=title, x_label="share of images answered", from_zero=True)
    return plot(title, chart)


def _score_chart(r: SpeciesResult) -> Markup | None:
    if r.score_histogram is None:
        return None
    title = "Probability of the answers"
    edges = [round(edge, 2) for edge in r.score_histogram.edges]
    return plot(title, histogram(edges, r.score_histogram.counts, title=title, unit="probability"))


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings that are not empty of the stages that change something, as names and texts."""
    rows = []
    stages = settings.get("stages", {})
    kinds = load_table("foveate.species.stages", "STAGES")
    for stage in (name for name in stages if name not in kinds or kinds[name].is_used(stages[name], stages)):
        title = stage_title(stage)
        for name, value in stages[stage].items():
            # A switch that is on is said by the other fields of its stage.
            if isinstance(value, dict) or value in (None, "", False, []) or name == "enabled":
                continue
            text = ", ".join(map(str, value)) if isinstance(value, list) else "yes" if value is True else str(value)
            rows.append((title if name == stage else f"{title}: {name.replace('_', ' ')}", text))
    if "gap_seconds" in settings:
        rows.append(("Gap between events", f"{settings['gap_seconds']:g} s"))
    return rows


# Page of one explained image: its steps, the nearest taxa and the nearest training images.


def build_species_explain(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an explanation (`SpeciesExplanation`)."""
    r = parse_result(SpeciesExplanation, result)
    images, near = (
        RunImages(run_folder),
        [(image, image.label or "no label", f"{image.cosine:.2f}") for image in r.images],
    )
    taxa = columns_of(
        r.taxa,
        [
            ("Taxon", lambda row: draw("taxon", row.name)),
            ("Cosine", lambda row: f"{row.cosine:.2f}"),
            ("Related", lambda row: row.relation or "not in one group"),
        ],
        left=[2],
        printed=True,
        max_printed=_MAX_NEAR,
    )
    lines = [
        f"near: {label}, camera {image.camera}, {cosine} ({image.key})" for image, label, cosine in near[:_MAX_NEAR]
    ]
    score = Markup('<span class="score">{} {:.2f}</span>').format(r.rank, r.score)
    return block_page(
        f"{r.answer}: {r.file}",
        eyebrow="Explanation",
        heading=Markup("{} {}").format(draw("taxon", r.answer, r.rank), score),
        top=[
            Drawn(
                _draw("explained", images, r, format_time(r.time), _overlays(r.box)),
                [
                    f"{r.answer} {r.rank} {r.score:.2f}",
                    *(f"also {answer}" for answer in r.also),
                    *(f"  {step}" for step in r.steps),
                ],
            )
        ],
        sections=[
            Section(
                "taxa",
                "Nearest taxa in the graph",
                [taxa] if r.taxa else [],
                f"By the cosine of their vectors with that of {r.classes[0][0] if r.classes else r.answer}.",
                "Taxa",
            ),
            Section(
                "images",
                "Nearest training images",
                [Drawn(_draw("near", images, near), lines)] if near else [],
                "Whose vectors point the same way. If all are of one camera, the model may have learned its ground.",
                "Training images",
            ),
        ],
        command=r.command,
    )


# Page of a check: findings by kind, and the images that show them.


def build_species_check(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a check (`SpeciesCheckResult`)."""
    r = parse_result(SpeciesCheckResult, result)
    groups: dict[str, list[CheckFinding]] = {}
    for finding in r.findings:
        groups.setdefault(finding.code, []).append(finding)
    images = RunImages(run_folder)
    return block_page(
        f"{count(len(r.findings))} finding{'' if len(r.findings) == 1 else 's'}"
        if r.findings
        else "Nothing is doubtful",
        eyebrow=f"Check of {r.collection}",
        top=[
            Text("For a person who knows the cameras. Nothing was changed."),
            Facts([(name[:1].upper() + name[1:], count(number)) for name, number in r.counts.items()]),
        ],
        sections=[
            Section(
                re.sub(r"\W+", "-", code),
                code[:1].upper() + code[1:],
                [Drawn(_draw("checked", images, findings))],
                f"{findings[0].meaning[:1].upper()}{findings[0].meaning[1:]}. Repair: {findings[0].repair}.",
            )
            for code, findings in groups.items()
        ],
        command=r.command,
    )


# Contact sheet of events to look at first, with the reasons.


def build_species_review(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a contact sheet (`SpeciesReviewResult`)."""
    r = parse_result(SpeciesReviewResult, result)
    events = [(event, [(image, _overlays(image.box)) for image in event.images]) for event in r.events]
    return block_page(
        f"{count(len(r.events))} of {count(r.decisions)} to look at first",
        eyebrow="Review",
        top=[
            Text(
                "In the order of what a look can change: unsure answers, the only ones of their kind, and empty events "
                "in which a detector sees something. Write corrections into the column “correction” of "
                f"{r.table} and give it to foveate species review --corrections."
            )
        ],
        sections=[Section("events", "Events", [Drawn(_draw("events", RunImages(run_folder), events, format_time))])],
        command=r.command,
    )


# Page of a species training: links and their losses, curves, classes and their images.


_TITLES = {"species": "Species", "parent": "Taxonomy", "location": "Places", "time": "Hours"}


def build_species_train(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training (`SpeciesTrainResult`)."""
    r = parse_result(SpeciesTrainResult, result)
    facts = [("Images", count(r.images)), ("Cameras", count(r.cameras)), ("Classes", count(len(r.classes)))]
    facts += [("Validation images", count(r.validation_images))] if r.validation_images else []
    facts += [("Cropped to a box", count(r.cropped))] if r.cropped else []
    facts += [(name.replace("_", " "), f"{value:.3f}") for name, value in r.selection.items() if value is not None]
    links = {}
    for entry in r.passes:
        loss = "" if entry.loss is None else f", loss {entry.loss:.4f}"
        chance = "" if entry.chance is None else f" (chance {entry.chance:.4f})"
        text = f"{entry.links:,} links, {entry.candidates:,} candidates, {entry.steps:,} steps an epoch{loss}{chance}"
        links[_TITLES.get(entry.relation, entry.relation)] = text
    summary: dict[str, Any] = {"links": links} if links else {}
    summary["training images of a class"] = {
        entry.taxon or entry.label: entry.images for entry in sorted(r.classes, key=lambda entry: -entry.images)
    }
    if r.left_out:
        summary["left out"] = dict(r.left_out)
    curves = parts.curves({"training": parts.read_metrics(run_folder, r.curves)}) if r.curves else []
    contexts = ", ".join(r.contexts) if r.contexts else "the species alone"
    stopped = "" if r.status == "finished" else "Stopped: the same command resumes. "
    lead = f"{stopped}Links: {contexts}. Places and hours are supervision: the model sees the image alone."
    return block_page(
        r.title or "Species training",
        eyebrow="Species training",
        top=[Text(lead), Facts(facts)],
        sections=[
            sections.summary_section(summary, ("links", "training images of a class")),
            sections.charts_section(curves, "Curves"),
            sections.recipe_section(r.recipe),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "species": build_species,
    "species_check": build_species_check,
    "species_explain": build_species_explain,
    "species_review": build_species_review,
    "species_train": build_species_train,
}
