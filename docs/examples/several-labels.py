"""Draw images with several labels, a count and an angle, and their tables: `python several-labels.py DIR`."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("bar", "disc", "frame")
COLORS = {"bar": (200, 40, 40), "disc": (40, 160, 60), "frame": (50, 80, 210)}


def draw_shapes(names: list[str], generator: np.random.Generator, side: int = 64) -> Image.Image:
    """Draw each shape once, at its own height and anywhere from left to right, on a gray ground with noise."""
    ground = generator.integers(90, 150, (side, side, 3)).astype(np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    size = side // 4
    for name in names:
        x, y = int(generator.integers(2, side - size - 2)), side // 16 + SHAPES.index(name) * (side // 3)
        box = (x, y, x + size, y + size)
        if name == "bar":
            pen.rectangle((x, y + size // 3, x + size, y + 2 * size // 3), fill=COLORS[name])
        elif name == "disc":
            pen.ellipse(box, fill=COLORS[name])
        else:
            pen.rectangle(box, outline=COLORS[name], width=max(2, side // 20))
    return image


def draw_angle(degrees: float, generator: np.random.Generator, side: int = 64) -> Image.Image:
    """Draw a white bar through the center, turned by an angle from 0 to 180 degrees."""
    image = Image.fromarray(generator.integers(30, 70, (side, side, 3)).astype(np.uint8))
    reach, turn = 0.42 * side, math.radians(degrees)
    dx, dy = reach * math.cos(turn), -reach * math.sin(turn)
    middle = side / 2
    ends = (middle - dx, middle - dy, middle + dx, middle + dy)
    ImageDraw.Draw(image).line(ends, fill=(250, 250, 250), width=side // 8)
    return image


def split_of(row: int) -> str:
    """Return train for three of five rows, validation and test for one each."""
    return ("train", "train", "train", "validation", "test")[row % 5]


def write_tables(folder: Path, *, count: int = 60, side: int = 32, seed: int = 0) -> Path:
    """Write images and two tables: tags.csv (image, labels, count, split) and angles.csv (image, degrees, split)."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    with (
        (folder / "tags.csv").open("w", newline="", encoding="utf-8") as tags,
        (folder / "angles.csv").open("w", newline="", encoding="utf-8") as angles,
    ):
        tag_rows, angle_rows = csv.writer(tags), csv.writer(angles)
        tag_rows.writerow(["image", "labels", "count", "split"])
        angle_rows.writerow(["image", "degrees", "split"])
        for row in range(count):
            # All eight sets of shapes, one after the other; "[]" is an image without any.
            names = [name for number, name in enumerate(SHAPES) if row % 8 >> number & 1]
            draw_shapes(names, generator, side).save(folder / "images" / f"tag{row}.png")
            tag_rows.writerow([f"images/tag{row}.png", ";".join(names) or "[]", len(names), split_of(row // 8 + row)])
            degrees = round(float(generator.uniform(15, 165)), 1)
            draw_angle(degrees, generator, side).save(folder / "images" / f"angle{row}.png")
            angle_rows.writerow([f"images/angle{row}.png", degrees, split_of(row)])
    return folder


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]), count=200, side=96)
