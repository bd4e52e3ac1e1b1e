"""Queries to an index: a text, an image, a box in an image, and weighted sums of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.records.boxes import Box, PixelBox
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.search.index import unit
from foveate.search.locate import EncodedImage, encode_image
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.preprocess import move_boxes, render_file

PARTS = ("text", "image", "box", "negative")


@dataclass(frozen=True)
class Query:
    """A query to an index.

    Attributes:
        text: a text to search by.
        image: the bytes of an image.
        box: in the image; it then stands for the image.
        negative: a text that the hits should be unlike.
        weights: of the parts by name ("text", "image", "box", "negative"); 1 by default.

    Raises:
        UserError: nothing to search for, an empty text, a box without an image, an unknown or impossible weight.
    """

    text: str | None = None
    image: bytes | None = None
    box: Box | PixelBox | None = None
    negative: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            raise UserError("The query is empty: give a text, an image, or a box in an image")
        for name in ("text", "negative"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise UserError(f"query, {name}: the text is empty; expected words such as 'a red boat'")
        if self.box is not None:
            check_box(self.box)
            if self.image is None:
                raise UserError("query, box: the image that the box lies in is missing")
        for name, weight in self.weights.items():
            choose(name, PARTS, "part of a query")
            if not 0 < weight < float("inf"):
                raise UserError(f"query, weight of '{name}': expected a number above 0 (got {weight:g})")
            if name not in self.parts:
                raise UserError(f"query, weight of '{name}': the query has only {', '.join(self.parts)}")

    @property
    def parts(self) -> list[str]:
        """Names of the parts that count; a box replaces its image."""
        visual = "box" if self.box is not None else "image" if self.image is not None else None
        present = {"text": self.text, visual: visual, "negative": self.negative}
        return [name for name in PARTS if present.get(name) is not None]


def check_box(box: object) -> Box | PixelBox:
    """Return `box` if it is a `Box` or a `PixelBox`.

    Raises:
        UserError: for four bare numbers, which could be corners or corner and size, pixels or fractions.
    """
    if isinstance(box, Box | PixelBox):
        return box
    raise UserError(
        f"box {box!r}: the units of four bare numbers are unknown; expected Box(x1, y1, x2, y2) for corners in [0, 1] "
        "of the image, PixelBox(x1, y1, x2, y2) for corners in pixels, or "
        "Box.from_xywh(PixelXYWH(...), width, height)"
    )


def to_fractions(box: Box | PixelBox, width: int, height: int) -> Box:
    """Convert a box to corners in [0, 1] of an image of `width` by `height` pixels."""
    checked = check_box(box)
    return Box.from_pixels(checked, width, height) if isinstance(checked, PixelBox) else checked


@torch.inference_mode()
def embed_boxes(model: LocalizingModel, encoded: EncodedImage, boxes: list[Box]) -> NDArray[np.float64]:
    """Embed boxes of an image; return unit-length vectors [R, E].

    Raises:
        UserError: naming a box that the encoder cannot see.
    """
    corners_R4 = np.stack([box.to_array() for box in boxes])
    # No share of a user's box is too small, as long as some of it is visible.
    inside_K4, visible_R = move_boxes(encoded.placement, corners_R4, min_visible=0)
    if not visible_R.all():
        hidden = boxes[int(np.argmin(visible_R))]
        raise UserError(f"{hidden}: the box is too small, or outside of what the encoder sees of the image")
    inside = torch.from_numpy(inside_K4).to(model.device)
    owner_R = torch.zeros(len(inside), dtype=torch.int64, device=model.device)
    return unit(model.encode_regions(encoded.tokens, inside, owner_R))


class EmbeddedQuery(NamedTuple):
    """A query as a unit-length vector [E].

    Attributes:
        box: of the query, in [0, 1] of its image. terms: part of the query -> its factor in the vector.
    """

    vector_E: NDArray[np.float64]
    box: Box | None
    terms: dict[str, float]


@torch.inference_mode()
def embed_crop(model: LocalizingModel, image: bytes, box: Box) -> NDArray[np.float64]:
    """Embed a box as an image of its own, for a model that never learned places; return its vector [1, E].

    Raises:
        UserError: the box shows less than a pixel of the image.
    """
    try:
        pixels, _ = render_file(image, model.image_encoder.preprocess, View(crop=box))
    except BadImage as problem:
        raise UserError(f"{box}: nothing of the image is left ({problem}); expected a larger box") from problem
    return unit(model.encode_image(pixels[None]))


@torch.inference_mode()
def embed_query(model: LocalizingModel, query: Query, *, text_E: torch.Tensor | None = None) -> EmbeddedQuery:
    """Embed a query.

    Each part is embedded and scaled to unit length; the vector is the weighted sum of the parts, `negative`
    subtracted, scaled to unit length again.

    Args:
        text_E: embedding of the query's text, where it is known.

    Raises:
        UserError: an unreadable image, a box outside it, parts that cancel out.
    """
    vectors: dict[str, NDArray[np.float64]] = {}
    box = None
    for name in ("text", "negative"):
        text = getattr(query, name)
        if text is not None:
            known = text_E if name == "text" else None
            vectors[name] = unit(embed_phrases(model, [text]) if known is None else known[None])[0]
    if query.image is not None:
        encoded = encode_image(model, query.image)
        if query.box is not None:
            box = to_fractions(query.box, encoded.width, encoded.height)
            embedded = embed_boxes(model, encoded, [box]) if model.localizes else embed_crop(model, query.image, box)
            vectors["box"] = embedded[0]
        else:
            vectors["image"] = unit(model.encode_image(encoded.tokens))[0]
    factors = {name: (-1 if name == "negative" else 1) * query.weights.get(name, 1.0) for name in vectors}
    vector_E = np.asarray(sum(factors[name] * vector for name, vector in vectors.items()), dtype=np.float64)
    length = float(np.linalg.norm(vector_E))
    # Below this the direction is rounding noise of the unit vectors.
    if not length > 1e-6:
        raise UserError("The parts of the query cancel out: nothing is left to search for")
    return EmbeddedQuery(vector_E / length, box, {name: factor / length for name, factor in factors.items()})
