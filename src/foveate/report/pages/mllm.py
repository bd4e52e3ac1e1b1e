"""Pages of multimodal models: answers, plans, samples, trainings and evaluations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup, escape

from foveate.core.results import parse_result
from foveate.mllm.plan import MemoryEstimate, PlannedImage, PlanResult
from foveate.mllm.results import (
    MllmResult,
    PreviewConversation,
    PreviewResult,
    PreviewSample,
    PreviewToken,
    PreviewView,
    ScorePair,
    SuiteResult,
    SuiteSample,
)
from foveate.multimodal.results import AskedImage, AskResult, Exchange
from foveate.records.boxes import PixelBox, normalize_box
from foveate.report import numbers, parts, words
from foveate.report.blocks import (
    Block,
    Chips,
    Drawn,
    Facts,
    Notes,
    Section,
    Table,
    Text,
    block_page,
    charts_of,
    columns_of,
    measures_of,
)
from foveate.report.images import Overlay, RunImages
from foveate.report.page import Page, draw

# Page of `foveate ask`: images with the boxes of question and answer, and what the model is.


def build_ask(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of result.json of `foveate ask` (`AskResult`)."""
    r = parse_result(AskResult, result)
    facts = [
        ("Model", r.model),
        ("What it is", r.description),
        ("Tokens answered", numbers.count(sum(exchange.tokens for exchange in r.exchanges))),
        ("Time to answer", numbers.duration(sum(exchange.seconds for exchange in r.exchanges))),
        ("Time to open the model", numbers.duration(r.seconds_to_open)),
    ]
    images = RunImages(run_folder)
    exchanges = [
        draw("exchange", images, exchange, _place_boxes(exchange, r.images, first=not n), template="ask.html.j2")
        for n, exchange in enumerate(r.exchanges)
    ]
    keys = {"default": "box of the answer"} if any(exchange.boxes for exchange in r.exchanges) else {}
    keys |= {"region": "region of the question"} if any(exchange.regions for exchange in r.exchanges) else {}
    reason = [Text(f"Not found: {r.reason}.", "strong")] if r.reason else []
    legend = [Drawn(draw("legend", keys, template="ask.html.j2"))] if keys else []
    return block_page(
        r.exchanges[0].question if r.exchanges else "Ask",
        eyebrow="Ask",
        top=[*reason, Facts(facts), *legend, *charts_of(exchanges, "list")],
        sections=[],
        command=r.command,
    )


def _place_boxes(
    exchange: Exchange, images: Sequence[AskedImage], *, first: bool
) -> list[tuple[AskedImage, list[Overlay]]]:
    """Put the images of an exchange together: all at the first one, then those that it has boxes in."""
    cards = []
    for number, image in enumerate(images):
        # `AskedImage.size` is (height, width), as in arrays.
        height, width = image.size
        overlays = [
            Overlay(normalize_box(PixelBox(*box), width, height), style)
            for boxes, of_images, style in (
                (exchange.regions, exchange.region_images, "region"),
                (exchange.boxes, exchange.box_images, "default"),
            )
            for box, of_image in zip(boxes, of_images, strict=True)
            if of_image == number
        ]
        # Otherwise a chat about one image would show it again with every answer.
        if first or overlays:
            cards.append((image, overlays))
    return cards


# The page of `foveate mllm plan`: each image in its canvas with tiles in their order, and its overview.


def build_mllm_plan(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a plan's result.json (`PlanResult`)."""
    r = parse_result(PlanResult, result)
    tiling = r.options.get("tiling", {})
    facts = [
        ("Images", str(len(r.images))),
        ("Views", str(r.num_views)),
        ("Visual tokens", f"{r.num_tokens:,}"),
        ("Megapixels", f"{r.megapixels:.2f}"),
        ("Rule", str(tiling.get("rule", ""))),
        ("Tile", f"{tiling.get('tile', '')} px"),
    ]
    drawn = "Numbers are the order of the views; shaded is padding. " if any(i.image for i in r.images) else ""
    lead = (
        f"Every image is resized into a canvas, cut into tiles and encoded view by view. {drawn}"
        "At a scale below 1 detail is lost."
    )
    limit = r.options.get("max_split_images")
    whole = (
        "The model sees each image as one view."
        if not limit
        else f"{len(r.images)} images are above max_split_images ({limit}): each is one view and none is split."
    )
    return block_page(
        "What these images cost",
        eyebrow="Plan",
        top=[Text(lead), Facts(facts), *([] if r.split else [Text(whole)]), *_show_memory(r.memory)],
        sections=[
            Section(f"image-{n}", image.file, _show_image(image, RunImages(run_folder)), link=f"Image {n}")
            for n, image in enumerate(r.images, 1)
        ],
        command=r.command,
    )


def _show_memory(memory: MemoryEstimate | None) -> list[Block]:
    """Return a table of the bytes of a training step and of an answer, with a column for each precision."""
    if memory is None:
        return [Text("Memory is that of a model: --recipe names one with its training.")]
    steps = memory.step
    uses = [*dict.fromkeys(use for step in steps.values() for use in step if use != "total"), "total"]
    measured = {use: {name: step[use] for name, step in steps.items() if use in step} for use in uses}
    names = {use: use.replace("_", " ").capitalize() for use in uses} | {"total": "A training step in all"}
    measured["cache"], names["cache"] = memory.cache, "Keys and values of an answer"
    # Megabytes are 10^6 bytes, as in a dry run.
    rows = [
        [names[use], *(f"{values[key] / 1e6:,.1f}" if key in values else "–" for key in steps)]
        for use, values in measured.items()
    ]
    lead = (
        f"Memory of one device in MB, estimated: a step of stage {memory.stage} with {memory.samples} samples of "
        f"{memory.positions:,} tokens each, and the answer to one question."
    )
    return [Text(lead), Table(["Use", *steps], rows, printed=True)]


def _show_image(image: PlannedImage, images: RunImages) -> list[Block]:
    """Return the costs of an image, its drawings where it has a thumbnail, and its views."""
    facts = [
        ("Height × width", "{} × {} px".format(*image.size)),
        ("Tiles", "{} × {}".format(*image.grid)),
        ("In its canvas", "{} × {} px".format(*image.resized)),
        ("Scale", f"{image.scale:.2f}"),
        ("Views", str(len(image.views))),
        ("Visual tokens", numbers.count(image.tokens)),
        ("Megapixels", f"{image.megapixels:.2f}"),
    ]
    blocks: list[Block] = [Facts(facts, of=image.file)]
    if image.note:
        blocks.append(Text(image.note))
    if image.image:
        figure = Markup('<figure class="{}">{}<figcaption class="note">{}</figcaption></figure>')
        canvas, overview = draw_canvas(image, images), draw_overview(image, images)
        drawings = [figure.format("canvas", canvas, f"Tiles of {image.tile} px")] if canvas else []
        drawings += [figure.format("overview", overview, "Overview")] if overview else []
        blocks.append(Drawn(Markup('<div class="tilings">{}</div>').format(Markup("").join(drawings))))
    cells = [f"row {view.row}, column {view.column}" if view.row else "overview" for view in image.views]
    marks = [Markup("<code>{}</code> ").format(view.indicator) if view.indicator else "" for view in image.views]
    named = enumerate(zip(marks, cells, strict=True), 1)
    return [*blocks, Chips([Markup("{}view {}: {}").format(mark, n, cell) for n, (mark, cell) in named])]


def draw_canvas(image: PlannedImage, images: RunImages) -> Markup:
    """Draw the tiles of an image: the image where it lies in the canvas, padding, borders and numbers of views."""
    rows, columns = image.grid
    order = {(view.row, view.column): number for number, view in enumerate(image.views, start=1)}
    if (1, 1) not in order:
        return Markup("")
    size = (rows * image.tile, columns * image.tile)
    cells = []
    for (row, column), number in order.items():
        if row:
            # Numbers have the size of the drawing, not of the tile: a row of nine tiles is as readable as one.
            font = min(image.tile * 0.42, max(size) * 0.05)
            cells.append(_cell((row - 1) * image.tile, (column - 1) * image.tile, image.tile, number, font))
    label = f"{image.file} in {rows} x {columns} tiles"
    return _draw(images, image.image, size, image.resized, image.offset, label, "".join(cells))


def draw_overview(image: PlannedImage, images: RunImages) -> Markup:
    """Draw the overview of an image; empty where it has none."""
    number = next((n for n, view in enumerate(image.views, start=1) if not view.row), None)
    if number is None:
        return Markup("")
    resized, offset = image.overview
    square = (image.tile, image.tile)
    label = f"overview of {image.file}"
    return _draw(
        images, image.image, square, resized, offset, label, _cell(0, 0, image.tile, number, image.tile * 0.13)
    )


def _cell(top: int, left: int, tile: int, number: int, font: float) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{tile}" height="{tile}"/>'
        f'<text x="{left + font * 0.35:.1f}" y="{top + font * 1.1:.1f}" font-size="{font:.1f}">{number}</text>'
    )


def _draw(
    images: RunImages,
    relative: str,
    size: tuple[int, int],
    resized: tuple[int, int],
    offset: tuple[int, int],
    label: str,
    cells: str,
) -> Markup:
    source = images.image(relative, longest_side=900).src
    # Nine tiles in one column would be nine screens high.
    frame = f'style="max-width:{80 * size[1] / size[0]:.1f}vh" viewBox="0 0 {size[1]} {size[0]}"'
    return Markup(
        f'<svg class="tiling" {frame} role="img" aria-label="{escape(label)}">'
        f'<rect class="pad" width="{size[1]}" height="{size[0]}"/>'
        f'<image href="{source}" x="{offset[1]}" y="{offset[0]}" width="{resized[1]}" height="{resized[0]}"'
        f' preserveAspectRatio="none"/>{cells}</svg>'
    )


# Page of `foveate mllm preview`: samples as the model gets them, token by token.


def build_mllm_preview(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a preview's result.json (`PreviewResult`)."""
    r = parse_result(PreviewResult, result)
    positions = [length + visual for length, visual in zip(r.lengths, r.visual, strict=True)]
    facts = [
        ("Stage", r.stage),
        ("Step", numbers.count(r.step)),
        ("Samples", f"{numbers.count(r.batch)} of {numbers.count(r.sets)}"),
        ("Conversations", numbers.count(r.conversations)),
        ("Positions of a sample", _spread(positions) + f", at most {numbers.count(r.max_positions)} fit"),
        ("Text tokens of a sample", _spread(r.lengths)),
        ("Padding", numbers.percent(r.padding_share)),
        ("Learned tokens", numbers.percent(r.learned_share)),
        ("Named regions", numbers.count(r.names)),
    ]
    lead = (
        f"One batch of {r.collection}, split {r.split}, exactly as training loads it: images in the size that the "
        "model gets, and every token."
    )
    legend = Drawn(draw("legend", template="mllm_preview.html.j2"))
    left_out = Notes([f"{numbers.count(entry.count)} {entry.what}: {entry.reason}" for entry in r.left_out])
    nothing = Text("Nothing.", "note")
    images = RunImages(run_folder)
    samples = []
    for n, sample in enumerate(r.samples, 1):
        drawn = draw("sample", images, _sample_card(sample), n, template="mllm_preview.html.j2")
        samples.append(Section(f"sample-{n}", f"Sample {n}", [_count_tokens(sample, n), Drawn(drawn)]))
    return block_page(
        r.title,
        eyebrow="Preview",
        heading="What the model trains on",
        top=[Text(lead), Facts(facts), legend],
        sections=[
            Section("left-out", "What is left out", [left_out if r.left_out else nothing], link="Left out"),
            *samples,
        ],
        command=r.command,
    )


def _spread(values: list[int]) -> str:
    """Format the smallest, the median and the largest value."""
    # One number where all samples agree: a range would look like three measurements.
    if not values or min(values) == max(values):
        return numbers.count(values[0] if values else 0)
    return f"{numbers.count(min(values))} to {numbers.count(max(values))}, median {numbers.count(median(values))}"


def _count_tokens(sample: PreviewSample, number: int) -> Facts:
    tokens = [token for conversation in sample.conversations for token in conversation.tokens]
    facts = [
        ("Visual tokens", numbers.count(sample.visual)),
        ("Text tokens", numbers.count(len(tokens))),
        ("Learned", numbers.count(sum(token.learned for token in tokens))),
        ("Padding", numbers.count(sample.padding)),
    ]
    return Facts(facts, of=f"Sample {number}")


def _sample_card(sample: PreviewSample) -> dict[str, Any]:
    return {
        "views": [_view_card(sample, view) for view in sample.views],
        "conversations": [_conversation_card(conversation, sample.visual) for conversation in sample.conversations],
        "mask": sample.mask,
    }


def _view_card(sample: PreviewSample, view: PreviewView) -> dict[str, Any]:
    # With region tokens each image is one view. A box that several conversations mean is drawn once, with all numbers.
    regions: dict[tuple[float, float, float, float], list[int]] = defaultdict(list)
    for index, region in enumerate(sample.regions, 1):
        if region.image == view.image:
            regions[region.box].append(index)
    # Boxes of tokens over those of names: where both are, the numbered one counts.
    overlays = [Overlay(region.box, "region") for region in view.names]
    overlays += [Overlay(box, "default") for box in regions]
    return {"view": view, "overlays": overlays, "regions": list(regions.items())}


def _conversation_card(conversation: PreviewConversation, visual: int) -> dict[str, Any]:
    read = f"{conversation.reads_images} of {visual} visual tokens"
    if conversation.reads_images == visual:
        read = f"all {visual} visual tokens"
    return {
        "id": conversation.id,
        "group": conversation.group,
        "tokens": [_token(token) for token in conversation.tokens],
        "reads": f"Reads {read}, up to {conversation.reads_itself} of its own, "
        f"and {conversation.reads_others or 'none'} of other conversations.",
    }


def _token(token: PreviewToken) -> dict[str, Any]:
    # Blanks at the edges decide what a token is: drawn, they can be seen.
    text = token.text.replace("\n", "↵")
    body = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if body else len(text)
    return {
        "text": "·" * left + body + "·" * (len(text.rstrip(" ")) < len(text) and bool(body)),
        "learned": token.learned,
        "region": token.region,
        "special": token.text.startswith("<") and token.text.endswith(">") and len(token.text) > 2,
    }


# Page of `foveate mllm train`: stages, what they were trained on, and their curves.


LAST = ("token_accuracy", "nearest_name", "iou")
"""Metrics whose last value stands beside a stage."""


def build_mllm_train(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training's result.json (`MllmResult`)."""
    r = parse_result(MllmResult, result)
    facts = []
    for stage in r.stages:
        last = [f"{words.plain(name)} {stage.last[name]:.3f}" for name in LAST if name in stage.last]
        trained = [f"{numbers.count(stage.steps)} steps", numbers.duration(stage.seconds), *last]
        facts.append((stage.name.capitalize(), ", ".join(trained)))
    facts += [
        ("Parameters", numbers.count(r.parameters)),
        ("Parameters trained", numbers.count(r.trained) if r.trained else ""),
        ("Images", numbers.count(r.images)),
        ("Conversations", numbers.count(sum(r.conversations.values()))),
        *((f"Left out, {reason}", numbers.count(count)) for reason, count in r.left_out.items()),
        *_compare_measures(r.before, r.after),
        ("Names of regions", numbers.count(r.names) if r.names else ""),
    ]
    runs = {stage.name: parts.read_metrics(run_folder, stage.curves) for stage in r.stages}
    charts = charts_of(parts.curves(runs, max_charts=8))
    return block_page(
        "A multimodal model",
        eyebrow="Train",
        top=[Facts(facts)],
        sections=[Section("charts", "How it learned", charts, link="Curves")],
        command=r.command,
    )


def _compare_measures(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, str]]:
    """Return a fact for each measure of an adapter: what it was before and after the training."""
    return [
        (f"{words.plain(name).capitalize()}, {images}", f"{before[images][name]:.3f} before, {value:.3f} after")
        for images, row in after.items()
        for name, value in row.items()
        if name in before.get(images, {})
    ]


# Page of `foveate mllm evaluate`: answers with both controls, and the table of the suite.


def build_mllm_evaluate(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a suite's result.json (`SuiteResult`)."""
    r = parse_result(SuiteResult, result)
    facts = [
        ("Model", r.model),
        ("Questions", numbers.count(r.questions)),
        ("Images", numbers.count(r.images)),
        ("Split", r.split),
    ]
    facts += [("Left out, unreadable or refused", numbers.count(r.unreadable))] if r.unreadable else []
    facts += [("Answers cut off", numbers.count(r.unfinished))] if r.unfinished else []
    images = RunImages(run_folder)
    answers = charts_of([_draw_answer(sample, images) for sample in r.samples], "list")
    if any(_overlays(sample) for sample in r.samples):
        answers = [Drawn(draw("box_legend")), *answers]
    lead = (
        "The best and the worst answers, as many of each. The same question without an image, and with the image of "
        "another question, shows what the words alone give away."
    )
    measured = measures_of(r.table, r.columns, "95 % intervals, bootstrap over images; the tick is guessing")
    further = r.further.get("image", {}).items()
    if measured and further:
        shares = [(name.capitalize(), "none" if share is None else f"{share:.3g}") for name, share in further]
        measured.append(Facts(shares))
    if r.official:
        columns: list[tuple[str, Callable[[ScorePair], str]]] = [
            ("Score", lambda pair: pair.name.replace("_", " ")),
            ("Ours", lambda pair: numbers.decimal(pair.ours, 3)),
            ("Official", lambda pair: numbers.decimal(pair.official, 3)),
        ]
        note = "Official: as the published evaluator reads the same answers, with its flaws."
        measured.append(columns_of(r.official, columns, note=note, printed=True))
    return block_page(
        r.title,
        eyebrow="Evaluate",
        top=[Facts(facts)],
        sections=[
            Section("answers", "Questions and answers", answers, lead, "Answers"),
            Section("numbers", "The numbers", measured, link="Numbers"),
        ],
        command=r.command,
    )


def _draw_answer(sample: SuiteSample, images: RunImages) -> Markup:
    answers = {condition: answer or "(nothing)" for condition, answer in sample.answers.items()}
    right, miss = draw("mark", sample.score >= 0.5), Markup(" <small>{}</small>").format(sample.miss)
    rows = [
        ("Question", sample.slice, sample.question.replace("<region>", "[box]")),
        ("Answer", "", Markup("{} {}{}").format(answers.pop("image"), right, miss if sample.miss else "")),
        ("Truth", "", "the true box" if sample.true_boxes else " · ".join(sample.references)),
    ]
    noisy = Markup('<p class="noisy">{}</p>')
    rows += [(condition.capitalize(), "", noisy.format(answer)) for condition, answer in answers.items()]
    alt = f"Image of the question: {sample.question}"
    return draw("captioned", images, sample.image, alt, rows, _overlays(sample), size=360)


def _overlays(sample: SuiteSample) -> list[Overlay]:
    styles = ((sample.regions, "region"), (sample.true_boxes, "truth"), (sample.boxes, "default"))
    return [Overlay(box, style) for boxes, style in styles for box in boxes]


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "ask": build_ask,
    "mllm_plan": build_mllm_plan,
    "mllm_preview": build_mllm_preview,
    "mllm_train": build_mllm_train,
    "mllm_evaluate": build_mllm_evaluate,
}
