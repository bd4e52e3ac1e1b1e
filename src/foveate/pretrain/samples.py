"""Records as a model sees them: images after preprocessing, boxes and texts as they are drawn in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.core import seeds
from foveate.records.collection import Collection
from foveate.records.images import BadImage, save_thumbnail
from foveate.vision.localizer.model import towers
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.pixels import Preprocess
from foveate.vision.registry import build_image_encoder
from foveate.vision.views import input_boxes, read


def image_of(pixels_3HW: Tensor) -> Image.Image:
    """uint8 model input back to an image."""
    return Image.fromarray(np.ascontiguousarray(pixels_3HW.numpy().transpose(1, 2, 0)))


def preprocess_of(recipe: LocalizerSettings) -> Preprocess:
    """How the recipe's image encoder sees an image."""
    return build_image_encoder(towers(recipe, "image_encoder")).preprocess


def sample_rows(
    collection: Collection, *, count: int, seed: int, split: str | None = None, where: dict[str, str] | None = None
) -> np.ndarray:
    """`count` rows of a split and of given label values, drawn by the seed, ascending; all where there are fewer."""
    rows = collection.rows(split, where)
    if count >= len(rows):
        return rows
    return np.sort(seeds.generator("gallery", seed).choice(rows, size=count, replace=False))


def write_samples(
    collection: Collection, recipe: LocalizerSettings, run: Path, rows: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Writes the images of `rows` below `run`/images and describes them, each with one of its texts.

    Returns:
        The described images, and key -> reason of those among them that could not be read.
    """
    preprocess = preprocess_of(recipe)
    samples: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for row in rows:
        record = collection.record(int(row))
        try:
            pixels, placement = read(collection, int(row), preprocess)
        except BadImage as problem:
            unreadable[record.key] = str(problem)
            continue
        path = save_thumbnail(image_of(pixels), run / "images" / f"sample-{row:08d}.webp")
        regions = []
        if record.regions:
            boxes_R4 = np.stack([region.box.to_array() for region in record.regions])
            moved_K4, kept_R = input_boxes(placement, boxes_R4)
            kept = [region for region, keep in zip(record.regions, kept_R, strict=True) if keep]
            regions = [
                {"box": [float(value) for value in box], "phrase": region.phrase, "slice": region.slice}
                for box, region in zip(moved_K4, kept, strict=True)
            ]
        drawn = int(seeds.uniform("gallery text", seed, record.key) * len(record.captions))
        caption = record.captions[drawn] if record.captions else None
        samples.append(
            {
                "image": str(path.relative_to(run)),
                "caption": caption.text if caption else "",
                "kind": caption.kind if caption else "",
                "source": record.labels.get("source", ""),
                "regions": regions,
            }
        )
    return samples, unreadable
