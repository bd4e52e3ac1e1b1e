"""What a detector is, and detectors by name: `x` is the module `foveate.caption.vesl.detectors.x`.

A detector is asked about some images and, for each, some phrases; it answers with boxes, each with a phrase and a
score. A new detector is one new module with a `DETECTOR`; nothing here changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import foveate.caption.vesl.detectors
from foveate.core.errors import choose
from foveate.core.recipes import Settings
from foveate.records.collection import Collection


@dataclass(frozen=True, slots=True)
class Shown:
    """One image for a detector: its row and key in the collection, its pixels (None where the detector reads none),
    and the size of the original in pixels, which `image` may be smaller than."""

    row: int
    key: str
    image: Image.Image | None
    width: int
    height: int

    @property
    def pixels(self) -> Image.Image:
        """The image, for detectors that read pixels."""
        assert self.image is not None, "this detector said that it reads no pixels"
        return self.image


def _no_boxes() -> NDArray[np.float64]:
    return np.zeros((0, 4))


@dataclass(frozen=True, slots=True)
class Found:
    """Boxes [K, 4] in [0, 1] of the image, their scores [K] in [0, 1], the number of each one's phrase [K], cosines
    with the phrase [K] where the detector has them, and how many boxes were thinner than a pixel."""

    boxes_K4: NDArray[np.float64] = field(default_factory=_no_boxes)
    scores_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    phrase_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    similarity_K: NDArray[np.float64] | None = None
    thin: int = 0


class Detector(Protocol):
    """Finds phrases in images.

    `model` and `version` say whose boxes they are; `input_px` is the side of the square that it sees (0 for none).
    """

    name: str
    model: str
    version: str
    input_px: int

    def detect(self, images: Sequence[Shown], phrases: Sequence[Sequence[str]]) -> list[Found]:
        """What is found in each image; `phrases[i]`, at least one, are those of image i."""
        ...


@dataclass(frozen=True, slots=True)
class DetectorKind:
    """A kind of detector: its settings, how it is opened for a collection on a device, whether it reads pixels.

    `oracle` marks one that answers with boxes that the collection holds already: never a default, and named in every
    row and table. `note` is one line for lists and docs.
    """

    settings: type[Settings]
    open: Callable[[Any, Collection, str | None], Detector]
    reads_pixels: bool = True
    oracle: bool = False
    note: str = ""


def detector_names() -> list[str]:
    """Names of all detectors, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(foveate.caption.vesl.detectors.__path__))


def find_detector(name: str) -> DetectorKind:
    """The detector `name`.

    Raises:
        UserError: for an unknown one, with the nearest match.
    """
    choose(name, detector_names(), "detector")
    return importlib.import_module(f"foveate.caption.vesl.detectors.{name}").DETECTOR
