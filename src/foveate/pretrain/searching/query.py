"""What is asked of an index: words, an image, a box in an image, and sums of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError, choose
from foveate.pretrain.locate import EncodedImage, encode_image_bytes
from foveate.pretrain.searching.index import unit
from foveate.records.boxes import Box, PixelBox
from foveate.vision.localizer.asking import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.views import input_boxes

PARTS = ("words", "image", "box", "negative")


@dataclass(frozen=True)
class Query:
    """A question to an index.

    Attributes:
        words, image, box, minus: text; the bytes of an image; a box in it, which then stands for the image; text
            that the answers should be unlike.
        weights: of the parts by name ("words", "image", "box", "minus"); 1 where none is given.

    Raises:
        UserError: nothing to look for, an empty text, a box without an image, an unknown or impossible weight.
    """

    words: str | None = None
    image: bytes | None = None
    box: Box | PixelBox | None = None
    negative: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.words is None and self.image is None:
            raise UserError("nothing to search for: give words, an image, or a box in an image")
        for name in ("words", "negative"):
            text = getattr(self, name)
            if text is not None and not text.strip():
                raise UserError(f"the query's {name} are empty: write what to look for, for example 'a red boat'")
        if self.box is not None:
            typed_box(self.box)
            if self.image is None:
                raise UserError("a box needs the image that it lies in")
        for name, weight in self.weights.items():
            choose(name, PARTS, "part of a query")
            if not 0 < weight < float("inf"):
                raise UserError(f"weight of '{name}': allowed is a number above 0, got {weight:g}")
            if name not in self.parts:
                raise UserError(f"weight of '{name}': the query has only {', '.join(self.parts)}")

    @property
    def parts(self) -> list[str]:
        """Names of the parts that count; a box takes its image's place."""
        shown = "box" if self.box is not None else "image" if self.image is not None else None
        given = {"words": self.words, shown: shown, "negative": self.negative}
        return [name for name in PARTS if given.get(name) is not None]


def typed_box(box: object) -> Box | PixelBox:
    """`box` if it is a `Box` or a `PixelBox`.

    Raises:
        UserError: for four bare numbers, which could be corners or corner and size, pixels or fractions.
    """
    if isinstance(box, Box | PixelBox):
        return box
    raise UserError(
        f"box {box!r}: four bare numbers do not say what they are; write Box(x1, y1, x2, y2) for corners in [0, 1] of "
        "the image, PixelBox(x1, y1, x2, y2) for corners in pixels, or Box.from_xywh(PixelXYWH(...), width, height)"
    )


@torch.inference_mode()
def embed_boxes(model: LocalizingModel, encoded: EncodedImage, boxes: list[Box]) -> NDArray[np.float64]:
    """Unit-length embeddings [R, E] of boxes of an image.

    Raises:
        UserError: naming a box of which the encoder sees nothing.
    """
    corners_R4 = np.stack([box.to_array() for box in boxes])
    inside_K4, kept_R = input_boxes(encoded.placement, corners_R4, min_visible=0)
    if not kept_R.all():
        raise UserError(f"{boxes[int(np.argmin(kept_R))]}: the encoder sees nothing of it: too small, or cut off")
    moved = torch.from_numpy(inside_K4).to(model.device)
    owner_R = torch.zeros(len(moved), dtype=torch.int64, device=model.device)
    return unit(model.encode_regions(encoded.tokens, moved, owner_R))


def as_box(box: Box | PixelBox, width: int, height: int) -> Box:
    """A box as corners in [0, 1] of an image of `width` by `height` pixels."""
    typed = typed_box(box)
    return Box.from_pixels(typed, width, height) if isinstance(typed, PixelBox) else typed


@torch.inference_mode()
def embed_query(model: LocalizingModel, query: Query) -> tuple[NDArray[np.float64], Box | None]:
    """The unit-length vector [E] of a query, and its box in [0, 1] of its image.

    The rule: each part is embedded and scaled to unit length; the vector is the sum of the parts by their weights,
    `negative` subtracted, scaled to unit length again.

    Raises:
        UserError: an unreadable image, a box outside it, parts that cancel out.
    """
    vectors: dict[str, NDArray[np.float64]] = {}
    box = None
    for name in ("words", "negative"):
        text = getattr(query, name)
        if text is not None:
            vectors[name] = unit(embed_phrases(model, [text]))[0]
    if query.image is not None:
        encoded = encode_image_bytes(model, query.image)
        if query.box is not None:
            box = as_box(query.box, encoded.width, encoded.height)
            vectors["box"] = embed_boxes(model, encoded, [box])[0]
        else:
            vectors["image"] = unit(model.encode_image(encoded.tokens))[0]
    total = sum(
        (-1 if name == "negative" else 1) * query.weights.get(name, 1.0) * vector for name, vector in vectors.items()
    )
    summed = np.asarray(total, dtype=np.float64)
    length = float(np.linalg.norm(summed))
    if not length > 1e-6:
        raise UserError("the parts of the query cancel out: nothing is left to search for")
    return summed / length, box
