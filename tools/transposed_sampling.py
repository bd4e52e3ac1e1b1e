"""Draw where Ferret's sampler reads a region: where it lies, and where released weights read it.

python tools/transposed_sampling.py docs/images/ferret-transposed.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from foveate.records.boxes import PixelBox
from foveate.vision.regions import prepare_regions
from foveate.vision.regions.sampler import central_point, farthest_points

SIDE, CELL = 480, 160
COLORS = ("#d1495b", "#edae49", "#66a182", "#2e4057", "#8d96a3", "#00798c")
REGION = (2, 0)
"""Column and row of the object that is asked about."""


def draw_scene() -> Image.Image:
    """Draw six discs and squares on a 3 x 3 layout, white where there is nothing."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    canvas = ImageDraw.Draw(image)
    for number, (column, row) in enumerate([(0, 0), REGION, (1, 1), REGION[::-1], (2, 1), (1, 2)]):
        box = [column * CELL + 30, row * CELL + 30, column * CELL + 130, row * CELL + 130]
        (canvas.ellipse if number % 2 else canvas.rectangle)(box, fill=COLORS[number])
    return image


def main(path: Path) -> None:
    """Draw the region, the points that the sampler draws in it, and those that its first block keeps."""
    left, top = REGION[0] * CELL + 20, REGION[1] * CELL + 20
    box = PixelBox(left, top, left + 120, top + 120)
    (points_N2,) = prepare_regions([[box]], [(SIDE, SIDE)], num_points=512).points_RN2
    anchors = farthest_points(points_N2[None], 128, central_point(points_N2[None]))[0]
    panels = []
    for swap in (False, True):
        image = draw_scene()
        canvas = ImageDraw.Draw(image)
        canvas.rectangle((box.x1, box.y1, box.x2, box.y2), outline="black", width=3)
        for points, radius, color in ((points_N2, 1, "#606060"), (points_N2[anchors], 3, "black")):
            for x, y in (points.flip(-1) if swap else points).mul(SIDE).tolist():
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        canvas.text((12, SIDE - 24), "official_xy_swap" if swap else "default", fill="black")
        panels.append(np.asarray(image))
    gap = np.full((SIDE, 24, 3), 255, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([panels[0], gap, panels[1]], axis=1)).quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
