"""Pages of multimodal models: answers, plans, samples, trainings and evaluations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup, escape

from foveate.core.results import parse_result
from foveate.mllm.plan import PlannedImage, PlanResult
from foveate.mllm.results import (
    MllmResult,
    PreviewConversation,
    PreviewResult,
    PreviewSample,
    PreviewToken,
    PreviewView,
    SuiteResult,
    SuiteSample,
)
from foveate.multimodal.results import AskedImage, AskResult, Exchange
from foveate.records.boxes import PixelBox, normalize_box
from foveate.report import numbers, parts
from foveate.report.images import Overlay, RunImages
from foveate.report.page import Page, command_text

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
    context = {
        "facts": [(name, value) for name, value in facts if value],
        "exchanges": [
            _exchange_card(exchange, r.images, first=number == 0) for number, exchange in enumerate(r.exchanges)
        ],
        "has_regions": any(exchange.regions for exchange in r.exchanges),
        "has_boxes": any(exchange.boxes for exchange in r.exchanges),
        "reason": r.reason,
        "command": command_text(r.command),
    }
    return Page("ask.html.j2", r.exchanges[0].question if r.exchanges else "Ask", context)


def _exchange_card(exchange: Exchange, images: Sequence[AskedImage], *, first: bool) -> dict[str, Any]:
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
            cards.append({"image": image, "overlays": overlays})
    return {"exchange": exchange, "images": cards}


# The page of `foveate mllm plan`: each image in its canvas with tiles in their order, and its overview.


def build_mllm_plan(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a plan's result.json (`PlanResult`)."""
    r = parse_result(PlanResult, result)
    images = RunImages(run_folder)
    cards = [
        {"image": image, "canvas": draw_canvas(image, images), "overview": draw_overview(image, images)}
        for image in r.images
    ]
    tiling = r.options.get("tiling", {})
    facts = [
        ("Images", str(len(r.images))),
        ("Views", str(r.num_views)),
        ("Visual tokens", f"{r.num_tokens:,}"),
        ("Megapixels", f"{r.megapixels:.2f}"),
        ("Rule", str(tiling.get("rule", ""))),
        ("Tile", f"{tiling.get('tile', '')} px"),
    ]
    context = {"facts": facts, "cards": cards, "split": r.split, "options": r.options}
    return Page("mllm_plan.html.j2", "What these images cost", context | {"command": command_text(r.command)})


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
    context = {
        "facts": facts,
        "left_out": r.left_out,
        "collection": r.collection,
        "split": r.split,
        "samples": [_sample_card(sample) for sample in r.samples],
        "command": command_text(r.command),
    }
    return Page("mllm_preview.html.j2", r.title, context)


def _spread(values: list[int]) -> str:
    """Format the smallest, the median and the largest value."""
    # One number where all samples agree: a range would look like three measurements.
    if not values or min(values) == max(values):
        return numbers.count(values[0] if values else 0)
    return f"{numbers.count(min(values))} to {numbers.count(max(values))}, median {numbers.count(median(values))}"


def _sample_card(sample: PreviewSample) -> dict[str, Any]:
    length = sum(len(conversation.tokens) for conversation in sample.conversations)
    return {
        "views": [_view_card(sample, view) for view in sample.views],
        "conversations": [_conversation_card(conversation, sample.visual) for conversation in sample.conversations],
        "mask": sample.mask,
        "facts": [
            ("Visual tokens", numbers.count(sample.visual)),
            ("Text tokens", numbers.count(length)),
            ("Learned", numbers.count(sum(t.learned for c in sample.conversations for t in c.tokens))),
            ("Padding", numbers.count(sample.padding)),
        ],
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


def build_mllm_train(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a training's result.json (`MllmResult`)."""
    r = parse_result(MllmResult, result)
    facts = [
        (stage.name.capitalize(), f"{numbers.count(stage.steps)} steps, {numbers.duration(stage.seconds)}")
        for stage in r.stages
    ]
    facts += [
        ("Parameters", numbers.count(r.parameters)),
        ("Images", numbers.count(r.images)),
        ("Conversations", numbers.count(sum(r.conversations.values()))),
    ]
    if r.names:
        facts.append(("Names of regions", numbers.count(r.names)))
    runs = {stage.name: parts.read_metrics(run_folder, stage.curves) for stage in r.stages}
    context = {
        "eyebrow": "Train",
        "name": "A multimodal model",
        "facts": facts,
        "charts": parts.curves(runs, max_charts=8),
        "samples": [],
        "groups": [],
        "columns": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", "A multimodal model", context)


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
    if r.unreadable:
        facts.append(("Left out, unreadable or refused", numbers.count(r.unreadable)))
    if r.unfinished:
        facts.append(("Answers cut off", numbers.count(r.unfinished)))
    context = {
        "eyebrow": "Evaluate",
        "name": r.title,
        "facts": facts,
        "samples": r.samples,
        "overlays": [_overlays(sample) for sample in r.samples],
        "groups": parts.table_groups(r.table, r.columns),
        "columns": r.columns,
        "further": [
            (name.capitalize(), "none" if share is None else f"{share:.3g}")
            for name, share in r.further.get("image", {}).items()
        ],
        "charts": [],
        "command": command_text(r.command),
    }
    return Page("mllm_run.html.j2", r.title, context)


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
