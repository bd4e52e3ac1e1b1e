"""An oracle: boxes that the collection holds already, with the caption's phrase that names each best.

It measures what the rest of the pipeline loses (captions, phrases, their wording) with a detector that never errs on
boxes. It labels nothing new: what it writes is marked with its name, and it is never a default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from foveate.caption.vesl.detection import Detector, DetectorKind, Found, Shown
from foveate.caption.vesl.words import STOP_WORDS
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.sources import is_pseudo


class AnnotationSettings(Settings):
    """Which of the collection's boxes answer, and how alike a phrase must be."""

    sources: tuple[str, ...] = Field((), description="sources of boxes; all but pseudo-labels by default")
    threshold: float = Field(0.3, ge=0, lt=1, description="least share of common words of box and phrase, strict")


def likeness(first: str, second: str) -> float:
    """Share of common words (without stop words) of two phrases among their words, in [0, 1].

    >>> likeness("a red car", "red car"), likeness("a car", "red car"), likeness("a dog", "red car")
    (1.0, 0.5, 0.0)
    """
    one, other = ({word for word in text.lower().split() if word not in STOP_WORDS} for text in (first, second))
    return len(one & other) / len(one | other) if one | other else 0.0


class AnnotationDetector(Detector):
    """See the module's text.

    Raises:
        UserError: for a source that has no boxes.
    """

    name, version, input_px = "annotations", "1", 0

    def __init__(self, settings: AnnotationSettings, collection: Collection) -> None:
        self.settings, self._collection = settings, collection
        self.model = f"annotations of {', '.join(settings.sources) or 'the collection'}"
        there = {str(one) for one in collection.table("regions")["source"].unique().to_pylist() if not is_pseudo(one)}
        unknown = set(settings.sources) - there
        if unknown:
            raise UserError(
                f"field sources: '{sorted(unknown)[0]}' has no boxes; allowed are {', '.join(sorted(there))}"
            )
        self._sources = set(settings.sources) or there

    def detect(self, images: Sequence[Shown], phrases: Sequence[Sequence[str]]) -> list[Found]:
        return [self._of(one.row, some) for one, some in zip(images, phrases, strict=True)]

    def _of(self, row: int, phrases: Sequence[str]) -> Found:
        regions = [one for one in self._collection.regions_of(row) if one.source in self._sources]
        if not regions:
            return Found()
        alike_KQ = np.array([[max(likeness(name, one.phrase), likeness(name, one.label)) for name in phrases]
                             for one in regions])  # fmt: skip
        best_K, score_K = alike_KQ.argmax(axis=1), alike_KQ.max(axis=1)
        kept = score_K > self.settings.threshold
        boxes_K4 = np.stack([one.box.to_array() for one in regions])
        return Found(boxes_K4[kept], score_K[kept], best_K[kept])


def open_detector(settings: AnnotationSettings, collection: Collection, device: str | None) -> AnnotationDetector:
    """See `AnnotationDetector`."""
    return AnnotationDetector(settings, collection)


DETECTOR = DetectorKind(
    settings=AnnotationSettings,
    open=open_detector,
    reads_pixels=False,
    oracle=True,
    note="oracle: boxes that are there already, with the caption's phrases",
)
