"""Inference with an opened model: embed phrases, and find them in images that were encoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.progress import track
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.geometry import Placement, View
from foveate.records.images import BadImage
from foveate.vision.encoder import ImageFeatures, TextEncoder
from foveate.vision.feature_cache import map_on_cores
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import DECODE_FACTOR, read_image

# Multi-scale candidate boxes for locating a phrase by the best-matching region embedding.


SIDES = (0.18, 0.28, 0.42, 0.62, 0.9)
ASPECTS = (0.6, 1.0, 1.67)
STEP = 0.45
# Few enough to keep for every image of a large collection.
COARSE_SIDES = (0.35, 0.55, 0.8)
COARSE_STEP = 0.5


def candidate_boxes(content: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Tile a square with boxes [C, 4] in [0, 1] of several sizes and aspects, clipped to its content.

    Args:
        content: (x1, y1, x2, y2) of the part of the model input that shows the image; the whole by default.

    Each size is the square root of the box's share of the area; neighbors overlap by about half.
    """
    return _tiles(content, sides=SIDES, aspects=ASPECTS, step=STEP)


def coarse_boxes(content: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Tile a square with few boxes [38, 4], of the content's shape, at three sizes, for an index of every image.

    Else as `candidate_boxes`.
    """
    return _tiles(content, sides=COARSE_SIDES, aspects=(1.0,), step=COARSE_STEP)


def _tiles(
    content: NDArray[np.float64] | None, *, sides: tuple[float, ...], aspects: tuple[float, ...], step: float
) -> NDArray[np.float32]:
    x1, y1, x2, y2 = (0.0, 0.0, 1.0, 1.0) if content is None else content
    boxes = []
    for side in sides:
        for aspect in aspects:
            width, height = side * aspect**0.5, side / aspect**0.5
            if width > 1 or height > 1:  # elongated boxes of the largest sizes do not fit
                continue
            lefts = _starts(width, step)
            tops = _starts(height, step)
            grid = np.stack(np.meshgrid(lefts, tops), axis=-1).reshape(-1, 2)
            boxes.append(np.concatenate([grid, grid + (width, height)], axis=1))
    scale, shift = np.array([x2 - x1, y2 - y1] * 2), np.array([x1, y1] * 2)
    return (np.concatenate(boxes) * scale + shift).clip(0, 1).astype(np.float32)


def _starts(length: float, step: float) -> NDArray[np.float64]:
    # Less a little, so that a quotient that is whole but for rounding gives no additional box.
    count = int(np.ceil((1 - length) / (step * length) - 1e-9)) + 1
    return np.linspace(0, 1 - length, count)


_BATCH = 256
_TEXTS = 256
_CROP_BATCH = 16


def encode_all(encoder: TextEncoder, texts: list[str], *, description: str = "reading texts") -> Tensor:
    """Compute frozen features [T, *feature_shape] of texts, on the CPU."""
    # Texts of like length share a batch, so that little is padded.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    features = torch.zeros(len(texts), *encoder.feature_shape, dtype=encoder.feature_dtype)
    starts = range(0, len(texts), _BATCH)
    for start in track(starts, description=description) if len(starts) > 8 else starts:
        indices = order[start : start + _BATCH]
        features[indices] = encoder.frozen_features([texts[index] for index in indices]).to(features.dtype)
    return features


def embed_phrases(model: LocalizingModel, texts: Sequence[str]) -> Tensor:
    """Compute unnormalized joint embeddings [T, E] on the CPU; each distinct text once, so equal texts are equal."""
    distinct = sorted(set(texts))
    if not distinct:
        return torch.zeros(0, model.recipe.embed_dim)
    features = encode_all(model.text_encoder, distinct)
    with torch.inference_mode():
        parts = [model.text_encoder(part.to(model.device)).float().cpu() for part in features.split(_TEXTS)]
    rows = {text: row for row, text in enumerate(distinct)}
    return torch.cat(parts)[[rows[text] for text in texts]]


def find(
    model: LocalizingModel,
    features: ImageFeatures,
    placements: Sequence[Placement],
    texts_RE: Tensor,
    index_R: Tensor,
    *,
    rule: str,
) -> NDArray[np.float64]:
    """Find the box of each phrase, [R, 4] in [0, 1] of the model input, by "head" or by "candidates"."""
    if rule == "head":
        return model.ground(features, texts_RE, index_R).cpu().double().numpy()
    assert rule == "candidates", rule
    return candidate_scores(model, features, placements, texts_RE, index_R)[0]


def candidate_scores(
    model: LocalizingModel,
    features: ImageFeatures,
    placements: Sequence[Placement],
    texts_RE: Tensor,
    index_R: Tensor,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the candidate box of highest cosine with each phrase [R, 4], and all cosines [R, C]."""
    boxes_BC4 = np.stack([candidate_boxes(placement.letterbox.content_box.to_array()) for placement in placements])
    images, count, _ = boxes_BC4.shape
    flat = torch.from_numpy(boxes_BC4).reshape(-1, 4).to(model.device)
    owner = torch.arange(images, device=model.device).repeat_interleave(count)
    z_BCE = F.normalize(model.encode_regions(features, flat, owner).float(), dim=-1).view(images, count, -1)
    # In parts: the embeddings of all candidates are copied for each phrase of their image.
    parts = zip(index_R.split(_TEXTS), F.normalize(texts_RE.float(), dim=-1).split(_TEXTS), strict=True)
    scores_RC = torch.cat([torch.einsum("rce,re->rc", z_BCE[index], texts) for index, texts in parts])
    best_R = scores_RC.argmax(1).cpu().numpy()
    return boxes_BC4[index_R.cpu().numpy(), best_R].astype(np.float64), scores_RC.cpu().numpy()


def encode_crops(
    model: LocalizingModel, collection: Collection, boxes: Sequence[tuple[int, Box]]
) -> NDArray[np.float32]:
    """Embed boxes as images of their own: unit-length vectors [R, E], one pass of the image encoder each.

    Args:
        boxes: row of the image and box in [0, 1] of it.

    Raises:
        BadImage: an image cannot be read.
    """
    preprocess = model.image_encoder.preprocess

    def render(row: int, box: Box) -> Tensor:
        try:
            return read_image(collection, row, preprocess, View(crop=box))[0]
        except BadImage:
            # The box is thinner than a pixel of the model input: three pixels of the decoded image are visible.
            sides = [float(collection.index[name][row]) for name in ("width", "height")]
            min_side = 3 * max(sides) / (DECODE_FACTOR * preprocess.long_side)
            wider = widen(box, min_side / sides[0], min_side / sides[1])
            return read_image(collection, row, preprocess, View(crop=wider))[0]

    @torch.inference_mode()
    def encode(start: int) -> Tensor:
        pixels = [render(*pair) for pair in boxes[start : start + _CROP_BATCH]]
        return model.encode_image(torch.stack(pixels)).cpu()

    return torch.cat(map_on_cores(encode, range(0, len(boxes), _CROP_BATCH), device=model.device)).numpy()


def widen(box: Box, width: float, height: float) -> Box:
    """Widen a box about its center to sides of at least `width` and `height` (fractions of the image)."""
    low, high = np.split(box.to_array(), 2)
    sides = np.minimum(np.maximum(high - low, (width, height)), 1.0)
    # Shifted inward at an edge: clipping would make it too narrow again.
    low = np.clip((low + high - sides) / 2, 0.0, 1.0 - sides)
    return Box(*low, *np.minimum(low + sides, 1.0))
