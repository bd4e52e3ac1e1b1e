"""Offline detector for photographs: NanoDet-g proposes boxes, a model or the boxes' class names choose their phrases.

The detector knows COCO's 80 classes, and its boxes are good beyond them (docs/methods/vesl.md), so with a model its
class names are not used. A box's phrase is the one of the caption whose embedding is nearest to the box's. What a
caption does not name gets one of its phrases all the same: `min_similarity` drops such boxes. Without a model the
phrase is the one whose sentence vector is nearest to the class name's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.caption.vesl.similarity import RegionScorer
from foveate.vision.detectors import CLASS_NAMES, NanoDetProposer, Proposals, ProposalSettings
from foveate.vision.minilm import PACKAGE_SHA256, SentenceEncoder

Comparison = Callable[[int, Proposals, Sequence[str]], NDArray[np.float64]]
# Minimum cosine between the sentence vectors of a class name and a phrase; see docs/methods/vesl.md.
MIN_NAME_SIMILARITY = 0.5


class NanoDetSettings(ProposalSettings):
    """Limits of the boxes, and the model that selects their phrases."""

    model: str | None = Field(
        None,
        description="model whose embeddings of boxes choose the phrase: a model folder, OWNER/NAME or "
        "open_clip:ARCH/PRETRAINED; without one the names of the detector's 80 classes do",
    )
    min_similarity: float = Field(
        -1.0, ge=-1, le=1, description="minimum cosine of a box with its phrase; with class names at least 0.5"
    )


class NanoDetDetector(Detector):
    """NanoDet-g's boxes with phrases of a caption.

    Raises:
        UserError: the shipped weights are damaged, or `model` is no model folder.
    """

    name, input_px = "nanodet", NanoDetProposer.input_px

    def __init__(self, settings: NanoDetSettings, device: str | None) -> None:
        self.settings = settings
        self.model = f"nanodet-g, phrases by {settings.model or 'class names'}"
        self._scorer = None if settings.model is None else RegionScorer(settings.model, device)
        self._names: SentenceEncoder | None = SentenceEncoder() if self._scorer is None else None
        # A higher limit than any model's: a class that no phrase names would get the nearest one all the same.
        limit = MIN_NAME_SIMILARITY if self._scorer is None else -1.0
        self._min_similarity = max(limit, settings.min_similarity)
        self._proposer = NanoDetProposer(settings, device)
        chooser = PACKAGE_SHA256[:12] if self._scorer is None else self._scorer.version
        self.version = f"{self._proposer.version} {chooser}"

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        proposals = self._proposer.propose(
            [self._proposer.to_square(image.pixels) for image in images],
            [(image.width, image.height) for image in images],
        )
        results = []
        scores = self._compare_names if self._scorer is None else self._compare_boxes(self._scorer, images)
        for index, (boxes, queries) in enumerate(zip(proposals, phrases, strict=True)):
            cosine_JQ = scores(index, boxes, queries)
            phrase_J = cosine_JQ.argmax(axis=1)
            cosine_J = cosine_JQ.max(axis=1)
            keep_J = cosine_J >= self._min_similarity
            results.append(
                Detections(
                    boxes.boxes_K4[keep_J], boxes.scores_K[keep_J], phrase_J[keep_J], cosine_J[keep_J], boxes.thin
                )
            )
        return results

    def _compare_boxes(self, scorer: RegionScorer, images: Sequence[DetectorInput]) -> Comparison:
        """Return a function that compares the boxes of an image with phrases by the model's embeddings."""
        tokens, placements = scorer.encode_images(images)
        return lambda index, boxes, phrases: scorer.cosines(
            tokens, placements[index], index, boxes.boxes_K4, scorer.embed(phrases)
        )

    def _compare_names(self, index: int, boxes: Proposals, phrases: Sequence[str]) -> NDArray[np.float64]:
        """Return cosines [K, Q] of the sentence vectors of the boxes' class names and of phrases."""
        assert self._names is not None
        names = [CLASS_NAMES[number] for number in boxes.classes_K]
        vectors = self._names([*names, *phrases]).double().numpy()
        return np.asarray(vectors[: len(names)] @ vectors[len(names) :].T)


DETECTOR = DetectorKind(
    settings=NanoDetSettings,
    open=lambda settings, _, device: NanoDetDetector(settings, device),
    note="offline, for photographs: class-agnostic boxes of NanoDet-g",
    without_model="the shipped NanoDet-g finds boxes, and the names of its 80 classes choose their phrases; "
    "--model open_clip:ARCH/PRETRAINED or a model folder names more",
)
