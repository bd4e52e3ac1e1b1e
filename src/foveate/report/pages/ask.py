"""Page of `foveate ask`: images with the boxes of question and answer, and what the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.core.results import parse_result
from foveate.multimodal.results import AskedImage, AskResult, Exchange
from foveate.records.boxes import PixelBox, normalize_box
from foveate.report import numbers
from foveate.report.images import Overlay
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
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
