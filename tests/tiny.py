"""A tiny collection of colored shapes with captions and boxes, and a tiny recipe: what end-to-end tests run on."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from foveate.core.recipes import validate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box, PixelBox
from foveate.records.collection import Collection
from foveate.records.record import Caption, Region
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40)}
SHAPES = ("disc", "square", "triangle")
UNSEEN = ("yellow triangle", "blue disc")
WITHOUT_TEXT = 2
SPLITS = {"train": 16 + WITHOUT_TEXT, "validation": 4, "test": 10}


def draw(things: list[tuple[str, PixelBox]], *, size: tuple[int, int], seed: int) -> Image.Image:
    """Shapes on dim noise."""
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pen = ImageDraw.Draw(image)
    for name, box in things:
        color, shape = name.split()
        x1, y1, x2, y2 = box.x1, box.y1, box.x2 - 1, box.y2 - 1
        if shape == "disc":
            pen.ellipse((x1, y1, x2, y2), fill=COLORS[color])
        elif shape == "square":
            pen.rectangle((x1, y1, x2, y2), fill=COLORS[color])
        else:
            pen.polygon([((x1 + x2) / 2, y1), (x1, y2), (x2, y2)], fill=COLORS[color])
    return image


def image_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_collection(path: Path) -> Path:
    """32 images of two different shapes side by side; two training images have no text."""
    names = [f"{color} {shape}" for shape in SHAPES for color in COLORS]
    with CollectionWriter(path, name="shapes", license="CC0-1.0", source="test", images_per_shard=12) as writer:
        number = 0
        for split, count in SPLITS.items():
            for index in range(count):
                random = np.random.default_rng(number)
                width, height = ((64, 64), (64, 48), (40, 64))[number % 3]
                things, half = [], width // 2
                for place, name in enumerate(random.choice(names, size=2, replace=False)):
                    side = int(random.integers(half * 6 // 10, half * 9 // 10 + 1))
                    left = place * half + int(random.integers(0, half - side + 1))
                    top = int(random.integers(0, height - side + 1))
                    things.append((str(name), PixelBox(left, top, left + side, top + side)))
                regions = [
                    Region(
                        Box.from_pixels(box, width, height),
                        name,
                        label=name,
                        slice="unseen" if name in UNSEEN else "seen",
                    )
                    for name, box in things
                ]
                if number % 5 == 4:
                    regions = regions[:1]
                text = f"a {things[0][0]} and a {things[1][0]}"
                captions = [Caption(text, "alt"), Caption(f"{text}, number {number}", "title")]
                if split == "train" and index >= count - WITHOUT_TEXT:
                    captions = []
                writer.add(
                    f"{split}-{index:02d}",
                    image_bytes(draw(things, size=(width, height), seed=number)),
                    captions=captions,
                    regions=regions,
                    labels={"source": "shapes", "category": things[0][0].split()[1]},
                    split=split,
                )
                number += 1
    return path


RECIPE: dict[str, Any] = {
    "config_version": 1,
    "image_encoder": {
        "kind": "open_clip",
        "model": "ViT-B-32",
        "vision": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64},
    },
    "text_encoder": {
        "kind": "open_clip",
        "model": "ViT-B-32",
        "text": {"layers": 1, "width": 32, "heads": 2, "context_length": 16},
    },
    "embed_dim": 32,
    "regions": {"prompter": {"pool": "prompt"}, "grounding_weight": 10.0, "filter": "exact"},
    "data": {"captions": {"alt": 1.0, "title": 1.0}},
    "training": {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "log_every": 1,
        "checkpoint_every": 2,
        "workers": 1,
    },
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested `changes`."""
    result = dict(base)
    for name, value in changes.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


def recipe(**changes: Any) -> PretrainRecipe:
    """The tiny recipe with changes, for example `regions={"method": "roi"}`."""
    return validate(PretrainRecipe, merged(RECIPE, changes), where="tiny recipe")


def write_recipe(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(merged(RECIPE, changes), sort_keys=False), encoding="utf-8")
    return path


def make_index(root: Path, collection: Path) -> Path:
    """Write `model`, a copy of the collection `my-images`, and `my-index` of them into `root`; return it."""
    # Most of those who draw a collection need no torch.
    from foveate.pretrain.train import build_model
    from foveate.search.index import build_index
    from foveate.vision.localizer.folder import save_model

    shutil.copytree(collection, root / "my-images")
    save_model(build_model(recipe()).eval(), root / "model")
    build_index(root / "model", root / "my-images", root / "my-index")
    return root


def damage(collection: Path, key: str) -> None:
    """Overwrites the bytes of an image in its shard, as a failing disk would."""
    with Collection.open(collection) as opened:
        row = opened.find_row(key)
        shard, offset, length = (int(opened.index[name][row]) for name in ("shard", "offset", "length"))
    with (collection / "images" / f"{shard:05d}.tar").open("r+b") as handle:
        handle.seek(offset)
        handle.write(bytes(length))


def label(collection: Path) -> Path:
    """Adds a region that a detector made, "a zebra", to the image train-00; returns the collection."""
    with AnnotationAppender(collection, purpose="labeling") as appender:
        row = {"key": "train-00", "x1": 0.1, "y1": 0.1, "x2": 0.4, "y2": 0.5, "phrase": "a zebra", "score": 0.5}
        appender.append("regions", [row], Provenance("vesl:test", "m", "abc"))
    return collection
