"""Sample images after preprocessing, with boxes and texts as training draws them, for a run's page."""

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
from foveate.vision.preprocess import Preprocess, move_boxes, read_image
from foveate.vision.registry import build_image_encoder


def to_image(pixels_3HW: Tensor) -> Image.Image:
    """Convert uint8 model input to an image."""
    return Image.fromarray(np.ascontiguousarray(pixels_3HW.numpy().transpose(1, 2, 0)))


def build_preprocess(recipe: LocalizerSettings) -> Preprocess:
    """Return the preprocessing of the recipe's image encoder."""
    return build_image_encoder(towers(recipe, "image_encoder")).preprocess


def sample_rows(
    collection: Collection, *, count: int, seed: int, split: str | None = None, where: dict[str, str] | None = None
) -> np.ndarray:
    """Draw `count` rows of a split with the given label values by the seed, ascending; all if there are fewer."""
    rows = collection.rows(split, where)
    if count >= len(rows):
        return rows
    return np.sort(seeds.generator("gallery", seed).choice(rows, size=count, replace=False))


def write_samples(
    collection: Collection, recipe: LocalizerSettings, run: Path, rows: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write the images of `rows` to `run`/images; describe them, each with one of its texts.

    Returns:
        Examples for the page (`foveate.core.results.Example`), and key -> reason of images that could not be read.
    """
    preprocess = build_preprocess(recipe)
    samples: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for row in rows:
        record = collection.record(int(row))
        try:
            pixels, placement = read_image(collection, int(row), preprocess)
        except BadImage as problem:
            unreadable[record.key] = str(problem)
            continue
        path = save_thumbnail(to_image(pixels), run / "images" / f"sample-{row:08d}.webp")
        regions = []
        if record.regions:
            boxes_R4 = np.stack([region.box.to_array() for region in record.regions])
            moved_K4, visible_R = move_boxes(placement, boxes_R4)
            visible = [region for region, mask in zip(record.regions, visible_R, strict=True) if mask]
            regions = [
                {"box": [float(value) for value in box], "phrase": region.phrase, "slice": region.slice}
                for box, region in zip(moved_K4, visible, strict=True)
            ]
        # Draw by key: an image shows the same text whatever else is on the page.
        drawn = int(seeds.uniform("gallery text", seed, record.key) * len(record.captions))
        caption = record.captions[drawn] if record.captions else None
        samples.append(
            {
                "image": path.relative_to(run).as_posix(),
                "caption": caption.text if caption else "",
                "kind": caption.kind if caption else "",
                "source": record.labels.get("source", ""),
                "regions": regions,
            }
        )
    return samples, unreadable
