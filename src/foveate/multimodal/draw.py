"""Draw the boxes of an answer on its images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from foveate.records.boxes import PixelBox

_LINE, _HALO = (255, 92, 53), (52, 40, 34)


def draw_boxes(image: Image.Image, boxes: Sequence[PixelBox]) -> Image.Image:
    """Return a copy of an image with boxes, in pixels; a dark halo keeps them visible on any ground."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    line = max(2, round(max(drawn.size) / 160))
    for box in boxes:
        for grow, color, width in ((line // 2, _HALO, 2 * line), (0, _LINE, line)):
            edges = (box.x1 - grow, box.y1 - grow, box.x2 + grow, box.y2 + grow)
            pen.rectangle(edges, outline=color, width=width)
    return drawn
