"""Oracle detector: boxes that the collection holds already, each with the caption's phrase that names it best.

It measures what the rest of the pipeline (captions, phrases, their wording) loses with a detector whose boxes are
right. It labels nothing new: its rows are marked with its name, and it is never a default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.caption.vesl.phrases import STOP_WORDS
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.region_sources import is_pseudo_label


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


DETECTOR = DetectorKind(
    settings=AnnotationSettings,
    open=lambda settings, collection, _: AnnotationDetector(settings, collection),
    reads_pixels=False,
    oracle=True,
    note="oracle: boxes that are there already, with the caption's phrases",
)
