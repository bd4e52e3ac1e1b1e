"""Records as a model sees them: pictures after preprocessing, boxes and texts as they are drawn in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from foveate.records.collection import Collection
from foveate.records.pictures import BadPicture
from foveate.records.thumbnails import save_thumbnail
from foveate.settings import seeds
from foveate.vision.localiser.model import towers
from foveate.vision.localiser.settings import LocaliserSettings
from foveate.vision.pixels import Preprocess
from foveate.vision.registry import build_image_encoder
from foveate.vision.views import input_boxes, read


def picture_of(pixels_3HW: Tensor) -> Image.Image:
    """uint8 model input back to a picture."""
    return Image.fromarray(np.ascontiguousarray(pixels_3HW.numpy().transpose(1, 2, 0)))


def preprocess_of(recipe: LocaliserSettings) -> Preprocess:
    """How the recipe's image encoder sees a picture."""
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
    collection: Collection, recipe: LocaliserSettings, run: Path, rows: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Writes the pictures of `rows` below `run`/pictures and describes them, each with one of its texts.

    Returns:
        The described pictures, and key -> reason of those among them that could not be read.
    """
    preprocess = preprocess_of(recipe)
    samples: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for row in rows:
        record = collection.record(int(row))
        try:
            pixels, placement = read(collection, int(row), preprocess)
        except BadPicture as problem:
            unreadable[record.key] = str(problem)
            continue
        path = save_thumbnail(picture_of(pixels), run / "pictures" / f"sample-{row:08d}.webp")
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
                "picture": str(path.relative_to(run)),
                "caption": caption.text if caption else "",
                "kind": caption.kind if caption else "",
                "source": record.labels.get("source", ""),
                "regions": regions,
            }
        )
    return samples, unreadable
