"""Detector interface (steps 3 and 4 of VESL), detectors by name, and the oracle among them.

A detector gets images and, for each, some phrases; it returns boxes, each with a phrase and a score. It is a row of
`DETECTORS`.

The oracle returns boxes that the collection holds already, each with the caption's phrase that names it best. It
measures what the rest of the pipeline (captions, phrases, their wording) loses with a detector whose boxes are right.
It labels nothing new: its rows are marked with its name, and it is never a default.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from foveate.caption.vesl.phrases import STOP_WORDS
from foveate.core.errors import UserError, choose
from foveate.core.hub import KINDS
from foveate.core.plugins import find_plugins, load_from_plugin
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.region_sources import is_pseudo_label


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
    """A kind of detector.

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


class AnnotationSettings(Settings):
    """Sources of the boxes, and the minimum similarity of a phrase."""

    sources: tuple[str, ...] = Field((), description="sources of boxes; all but pseudo-labels by default")
    threshold: float = Field(0.3, ge=0, lt=1, description="minimum share of common words of box and phrase, strict")


def word_overlap(first: str, second: str) -> float:
    """Jaccard index of the words of two phrases, stop words left out.

    >>> word_overlap("a red car", "red car"), word_overlap("a car", "red car"), word_overlap("a dog", "red car")
    (1.0, 0.5, 0.0)
    """
    a, b = ({word for word in text.lower().split() if word not in STOP_WORDS} for text in (first, second))
    return len(a & b) / len(a | b) if a | b else 0.0


class AnnotationDetector(Detector):
    """Returns annotated boxes with the phrase of highest word overlap.

    Raises:
        UserError: one of `settings.sources` has no boxes.
    """

    name, version, input_px = "annotations", "1", 0

    def __init__(self, settings: AnnotationSettings, collection: Collection) -> None:
        self.settings, self._collection = settings, collection
        self.model = f"annotations of {', '.join(settings.sources) or 'the collection'}"
        # Pseudo-labels are left out: a run would otherwise return what an earlier run of it wrote.
        column = collection.table("regions")["source"].unique().to_pylist()
        available = {str(source) for source in column if not is_pseudo_label(source)}
        unknown = sorted(set(settings.sources) - available)
        if unknown:
            raise UserError(
                f"field 'sources': no boxes of source '{unknown[0]}'; expected {', '.join(sorted(available))}"
            )
        self._sources = set(settings.sources) or available

    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        return [self._detect_in_row(image.row, queries) for image, queries in zip(images, phrases, strict=True)]

    def _detect_in_row(self, row: int, phrases: Sequence[str]) -> Detections:
        regions = [region for region in self._collection.read_regions(row) if region.source in self._sources]
        if not regions:
            return Detections()
        overlap_KQ = np.array(
            [
                [max(word_overlap(phrase, region.phrase), word_overlap(phrase, region.label)) for phrase in phrases]
                for region in regions
            ]
        )
        # Each box gets one phrase; of equally similar ones the first of the caption.
        best_K, score_K = overlap_KQ.argmax(axis=1), overlap_KQ.max(axis=1)
        keep_K = score_K > self.settings.threshold
        boxes_K4 = np.stack([region.box.to_array() for region in regions])
        return Detections(boxes_K4[keep_K], score_K[keep_K], best_K[keep_K])


ANNOTATIONS = DetectorKind(
    settings=AnnotationSettings,
    open=lambda settings, collection, _: AnnotationDetector(settings, collection),
    reads_pixels=False,
    oracle=True,
    note="oracle: boxes that are there already, with the caption's phrases",
)


# Name -> module and its `DetectorKind`: those with a network load torch, which other detectors do without.
DETECTORS: dict[str, str] = {
    "annotations": "foveate.caption.vesl.detection:ANNOTATIONS",
    "cloc": "foveate.caption.vesl.embedding_detectors:CLOC",
    "mllm": "foveate.caption.vesl.query_detectors:MLLM",
    "nanodet": "foveate.caption.vesl.embedding_detectors:NANODET",
    "owlv2": "foveate.caption.vesl.query_detectors:OWLV2",
}


def choose_detector(model: str | None) -> str:
    """Return the detector of a run that names none: `mllm` with the shipped `mini`, `nanodet` with an encoder.

    Chosen by `python -m benchmarks.vesl_detectors`: `mini` finds more on photographs, and far more on drawn scenes.
    """
    return "mllm" if model is None or model in KINDS["multimodal"].shipped else "nanodet"


def find_detector(name: str) -> DetectorKind:
    """Return the detector of a name.

    Raises:
        UserError: the name is unknown; the error has the nearest match.

    Example:
        >>> find_detector("owlv2").settings.__name__
        'Owlv2Settings'
    """
    if choose(name, sorted({*DETECTORS, *find_plugins(__name__)}), "detector") not in DETECTORS:
        return load_from_plugin(__name__, name, "DETECTOR")
    module, _, attribute = DETECTORS[name].partition(":")
    kind: DetectorKind = getattr(importlib.import_module(module), attribute)
    return kind
