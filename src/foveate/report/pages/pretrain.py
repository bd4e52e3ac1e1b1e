"""Pages of collections and of image-text models: inspection, training, evaluation, search, phrases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.errors import UserError
from foveate.core.paths import shorten_path
from foveate.core.results import (
    BoxChoice,
    BoxValues,
    Example,
    Histogram,
    Hit,
    LocatedPhrase,
    Query,
    ResultModel,
    Search,
    parse_result,
)
from foveate.pretrain.results import EvaluateResult, PretrainResult
from foveate.report import numbers, parts, sections, words
from foveate.report.blocks import Drawn, Facts, Section, Table, Text, block_page
from foveate.report.charts import histogram, plot
from foveate.report.images import Overlay, RunImages
from foveate.report.numbers import count, signed
from foveate.report.page import Page, draw
from foveate.report.parts import rules_of, where_groups, which_groups
from foveate.search.results import LocateResult, SearchResult

# The page of a collection: records after preprocessing first, then counts, sizes, text lengths and quarantine.


class Quarantined(ResultModel):
    """Number of images that were not imported for one reason, with an example."""

    reason: str
    count: int
    example: str | None = ""


class InspectResult(ResultModel):
    """result.json of `foveate inspect`."""

    kind: str
    title: str = ""
    summary: dict[str, Any] = {}
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    quarantine: list[Quarantined] = []
    command: str | list[str] = ""


# Fields of a summary whose names come from the collection, such as its labels.
OWN_NAMES = "by_source by_split by_format by_label by_slice by_group frequent_phrases quarantine".split()


def build_inspect(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an inspection's result.json (`InspectResult`)."""
    r = parse_result(InspectResult, result)
    charts = []
    for name, h in r.histograms.items():
        # Checked here, because `histogram` raises a ValueError that names no field of result.json.
        if len(h.edges) != (num_edges := len(h.counts) + 1):
            raise UserError(f"result.json, field 'histograms.{name}': {len(h.counts)} counts need {num_edges} edges")
        title = words.plain(name)
        chart = histogram(h.edges, h.counts, title=title, unit=h.unit)
        charts.append(plot(title, chart))
    rows = [[kind.reason, count(kind.count), kind.example or ""] for kind in r.quarantine]
    refused = Table(["Reason", "Count", "Example"], rows, left=(2,))
    # An empty quarantine is a result, too: nothing was refused.
    quarantine = refused if r.quarantine else Text("Nothing: everything could be read.", "note")
    return block_page(
        r.title or str(r.summary.get("name", "A collection")),
        eyebrow="Inspection",
        top=[Facts(_facts(r.summary))],
        sections=[
            sections.samples_section(RunImages(run_folder), r.samples),
            sections.summary_section(r.summary, OWN_NAMES),
            sections.charts_section(charts, "Distributions"),
            Section("quarantine", "Could not be taken in", [quarantine], link="Quarantine"),
        ],
        command=r.command,
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the totals that stand above the images; all other counts are below them."""
    totals = {"Images": summary.get("images")}
    for title, key in (("Texts", "texts"), ("Regions", "regions")):
        part = summary.get(key)
        totals[title] = part.get("count") if isinstance(part, Mapping) else part
    return [(title, count(value)) for title, value in totals.items() if isinstance(value, int)]


def build_pretrain(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training run."""
    r = parse_result(PretrainResult, result)
    rows = parts.read_metrics(run_folder, r.curves) if isinstance(r.curves, str) else r.curves
    seconds = sum(r.seconds.values()) if isinstance(r.seconds, dict) else r.seconds
    facts = [
        ("Steps", numbers.count(r.steps)),
        ("Time", numbers.duration(seconds)),
        ("Images", numbers.count(r.images) if r.images else ""),
        *((f"Parameters, {words.plain(key)}", _parameter(value)) for key, value in r.parameters.items()),
        ("Frozen part of the image tower", r.frozen),
        ("Model folder", r.model),
    ]
    return block_page(
        r.title or str(r.recipe.get("name", "A training run")),
        eyebrow="Pretraining",
        top=[Facts(facts)],
        sections=[
            sections.numbers_section(r.evaluation),
            sections.charts_section(parts.curves({"this run": rows}, max_charts=8)),
            sections.samples_section(RunImages(run_folder), r.samples),
            sections.recipe_section(r.recipe),
        ],
        command=r.command,
    )


def _parameter(value: Any) -> str:
    return numbers.millions(value) if isinstance(value, int | float) else str(value)


# The page of one evaluation: the table of metrics, and examples of held-out images.


def build_evaluate(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an evaluation."""
    r = parse_result(EvaluateResult, result)
    located = [example for example in r.examples if isinstance(example, LocatedPhrase)]
    titles, images = {column.key: column.title for column in r.columns}, RunImages(run_folder)
    searches = [Drawn(draw("search", images, example, titles)) for example in r.examples if isinstance(example, Search)]
    where = Drawn(draw("where", images, where_groups(located, r.default), rules_of(located, r.default), r.default))
    which = which_groups([example for example in r.examples if isinstance(example, BoxChoice)])
    return block_page(
        r.title or "What the model gets right",
        eyebrow="Evaluation",
        top=[Facts([("Model", r.model), ("Collection", r.collection), ("Split", r.split)])],
        sections=[
            Section("search", "Search", searches),
            sections.numbers_section(r),
            Section("where", "Where is …?", [where] if located else [], link="Where is"),
            Section(
                "which",
                "Which of these boxes?",
                [Drawn(draw("which", images, which))] if which else [],
                link="Which box",
            ),
        ],
        command=r.command,
    )


# The page of one search: the query and a gallery of its hits.


KINDS = {"text": "a text", "image": "an image", "box": "a box in an image"}


def build_search(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a search."""
    r = parse_result(SearchResult, result)
    facts = [(f"{name.capitalize()} searched", count(number)) for name, number in r.searched.items() if number]
    facts += [("Collection", r.collection), ("Backend", r.backend), ("Model", r.model)]
    query_file, images = Path(r.file).name if r.file else "", RunImages(run_folder)
    what = f"this box in {query_file}" if query_file and r.query.box else query_file or "this"
    query_image = [Drawn(_draw("asked", images, r.query, _overlays(r.query.box), query_file))] if r.query.image else []
    unlike = f"unlike: {r.query.negative}" if r.query.negative else ""
    texts = [(r.note, "strong"), (unlike, "lead"), (_weighted_sum(r.query), "note")]
    unknown = _unknown(r.unknown_words)
    hits = [Drawn(Markup(""), unknown)] if unknown else []
    for name, results in r.results.items():
        drawn = _draw("found", images, name if len(r.results) > 1 else "", [_hit_card(hit) for hit in results])
        hits.append(Drawn(drawn, [hit_line(rank, hit) for rank, hit in enumerate(results, start=1)]))
    return block_page(
        f"Search: {r.query.text or query_file}" if r.query.text or query_file else "Search results",
        eyebrow=f"Search · {_query_parts(r.query)}{f' → {words.data(r.data)}' if r.data else ''}",
        heading=r.query.text or f"What is like {what}?",
        top=[*(Text(text, kind) for text, kind in texts if text), *query_image, Facts(facts)],
        sections=[
            Section(
                "search",
                "Results",
                hits,
                "Best first: ordered by z plus the text weight (--text-weight, 3 by default) times the share of the "
                "query's words in captions and file names. The first number is the cosine with the query, z how many "
                "standard deviations it is above random queries; an index without z is ordered by the cosine. A box is "
                "the region that matched.",
            )
        ],
        command=r.command,
    )


_draw = partial(draw, template="search.html.j2")


def _unknown(unknown_words: Sequence[str]) -> list[str]:
    names = ", ".join(repr(word[:40]) for word in unknown_words)
    return [f"unknown to the text tower: {names}"] if names else []


def _overlays(box: BoxValues | None) -> list[Overlay]:
    return [Overlay(box, "default")] if box else []


def _hit_card(hit: Hit) -> dict[str, Any]:
    """Prepare a hit for its page and its line: what was measured as text, folder and file, and a link to it."""
    z = [] if hit.z is None else [f"z {signed(hit.z, 1)}"]
    # Without the share of words the order of hits would look wrong.
    measured = " · ".join([*z, f"words {100 * hit.text:.0f} %"] if hit.text else z)
    texts = {"score": signed(hit.score, 3), "measured": measured, "link": file_uri(hit.path)}
    return texts | {"hit": hit, "where": split_path(hit.path or hit.key), "overlays": _overlays(hit.box)}


def hit_line(rank: int, hit: Hit) -> str:
    """Write a hit in a line: rank, cosine, z, share of the words in its texts, file (or key of a copy), box, text."""
    card = _hit_card(hit)
    box = f"box {' '.join(f'{edge:.3f}' for edge in hit.box)}" if hit.box else ""
    # A text beside an image can have many lines, of which one hit must not take more than its own.
    text = " ".join((hit.phrase or hit.caption).split())[:60]
    where = shorten_path(hit.path) or hit.key
    return "  ".join(filter(None, [f"{rank:>3}", card["score"], card["measured"], where, box, text]))


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


# The page of a phrase located in one image.


def build_locate(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a located phrase."""
    r = parse_result(LocateResult, result)
    card = parts.locate_card(r, "head")
    lines = [_rule_line(r, name, is_answer=name == card["rule"]) for name in r.boxes]
    if r.scores.get(card["rule"], 0) is None:
        lines.append(f"Not found: the box of {card['rule']} has no area")
    lines += _unknown(r.unknown_words)
    return block_page(
        f"Where is “{r.phrase}”?",
        eyebrow="Locate",
        top=[*([] if r.has_match or not r.reason else [Text(f"Not found: {r.reason}.")]), Facts([("Model", r.model)])],
        sections=[Section("answer", "The answer", [Drawn(_draw("located", RunImages(run_folder), card), lines)])],
        command=r.command,
    )


def _rule_line(r: LocateResult, name: str, *, is_answer: bool) -> str:
    """Write the box of a rule in fractions and in pixels, and its cosine with the phrase."""
    box, score, sides = r.boxes[name], r.scores.get(name), (r.width or 0, r.height or 0) * 2
    fractions = "  ".join(f"{edge} {value:.3f}" for edge, value in zip(("x1", "y1", "x2", "y2"), box, strict=True))
    pixels = " ".join(f"{value * side:.0f}" for value, side in zip(box, sides, strict=True))
    cosine = "no area" if score is None else f"cosine {score:+.3f}"
    return f"{name:<10}  {fractions}  px {pixels}  {cosine}{'  <- selected' if is_answer and score is not None else ''}"


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "inspect": build_inspect,
    "pretrain": build_pretrain,
    "evaluate": build_evaluate,
    "search": build_search,
    "locate": build_locate,
}
