"""The page of `foveate mllm plan`: each image in its canvas with tiles in their order, and its overview."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from foveate.core.results import parse_result
from foveate.mllm.plan import PlannedImage, PlanResult
from foveate.report.images import RunImages
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
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
