"""Detector interface (steps 3 and 4 of VESL).

A detector gets images and, for each, some phrases; it returns boxes, each with a phrase and a score. A new detector is
one new module of `foveate.caption.vesl.detectors` with a `DETECTOR`; its name is the module's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.plugins import load_plugin, module_names
from foveate.core.recipes import Settings
from foveate.records.collection import Collection

DETECTORS = "foveate.caption.vesl.detectors"


@dataclass(frozen=True, slots=True)
class DetectorInput:
    """One image for a detector.

    Attributes:
        row, key: of the image in the collection.
        image: pixels, perhaps smaller than the original; None for detectors that read none.
        width, height: of the original in pixels.
    """

    row: int
    key: str
    image: Image.Image | None
    width: int
    height: int

    @property
    def pixels(self) -> Image.Image:
        """The image, for detectors that read pixels."""
        assert self.image is not None, "a detector with reads_pixels=False gets no image"
        return self.image


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one image.

    Attributes:
        boxes_K4: x1, y1, x2, y2 in [0, 1] of the image.
        scores_K: confidence in [0, 1].
        phrase_K: index of each box's phrase in the image's list.
        similarity_K: cosine of box and phrase, where the detector has embeddings.
        thin: boxes dropped because a side was below `padded_square.MIN_SIDE_PX`.
    """

    boxes_K4: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    scores_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    phrase_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    similarity_K: NDArray[np.float64] | None = None
    thin: int = 0


class Detector(Protocol):
    """Locates phrases in images.

    Attributes:
        name: of the detector's module.
        model, version: checkpoint and its hash or commit; both are written into every row.
        input_px: side of the square that the detector sees, 0 if it reads no pixels.
    """

    name: str
    model: str
    version: str
    input_px: int

    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        """Detect `phrases[i]` (at least one) in `images[i]`; return one result per image."""
        ...


@dataclass(frozen=True, slots=True)
class DetectorKind:
    """A kind of detector, the `DETECTOR` of its module.

    Attributes:
        settings: its options.
        open: (settings, collection, device) -> detector.
        reads_pixels: whether images must be decoded for it.
        oracle: it returns boxes that the collection holds already. Never a default; every row and table names it.
        note: one line for lists and docs.
        without_model: what a run says where its `model` is not given.
    """

    settings: type[Settings]
    open: Callable[[Any, Collection, str | None], Detector]
    reads_pixels: bool = True
    oracle: bool = False
    note: str = ""
    without_model: str = ""


def detector_names() -> list[str]:
    """List all detectors without importing them."""
    return module_names(DETECTORS)


def find_detector(name: str) -> DetectorKind:
    """Return the detector of a name.

    Raises:
        UserError: the name is unknown; the error has the nearest match.
    """
    return load_plugin(DETECTORS, name, "DETECTOR", label="detector")
