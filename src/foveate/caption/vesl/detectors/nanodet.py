"""Offline detector for photographs: NanoDet-g proposes boxes, a model folder names them.

The detector knows COCO's 80 classes, and its boxes are good beyond them (docs/methods/vesl.md), so its class names are
not used. A box's phrase is the one of the caption whose embedding is nearest to the box's. What a caption does not name
gets one of its phrases all the same: `min_similarity` drops such boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind
from foveate.caption.vesl.similarity import RegionScorer
from foveate.records.collection import Collection
from foveate.vision.detectors.nanodet import NanoDetProposer, ProposalSettings


class NanoDetSettings(ProposalSettings):
    """Limits of the boxes, and the model that selects their phrases."""

    model: str = Field(description="model folder of `foveate pretrain` whose region embeddings choose the phrase")
    min_similarity: float = Field(-1.0, ge=-1, le=1, description="minimum cosine of a box with its phrase")


class NanoDetDetector(Detector):
    """NanoDet-g's boxes with phrases of a caption.

    Raises:
        UserError: the shipped weights are damaged, or `model` is no model folder.
    """

    name, input_px = "nanodet", NanoDetProposer.input_px

    def __init__(self, settings: NanoDetSettings, device: str | None) -> None:
        self.settings = settings
        self.model = f"nanodet-g, phrases by {settings.model}"
        self._scorer = RegionScorer(settings.model, device)
        self._proposer = NanoDetProposer(settings, device)
        self.version = f"{self._proposer.version} {self._scorer.version}"

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        proposals = self._proposer.propose(
            [self._proposer.to_square(image.pixels) for image in images],
            [(image.width, image.height) for image in images],
        )
        tokens, placements = self._scorer.encode_images(images)
        results = []
        for index, (boxes, queries) in enumerate(zip(proposals, phrases, strict=True)):
            texts_QE = self._scorer.embed(queries)
            cosine_JQ = self._scorer.cosines(tokens, placements[index], index, boxes.boxes_K4, texts_QE)
            phrase_J = cosine_JQ.argmax(axis=1)
            cosine_J = cosine_JQ.max(axis=1)
            keep_J = cosine_J >= self.settings.min_similarity
            results.append(
                Detections(
                    boxes.boxes_K4[keep_J], boxes.scores_K[keep_J], phrase_J[keep_J], cosine_J[keep_J], boxes.thin
                )
            )
        return results


def open_detector(settings: NanoDetSettings, collection: Collection, device: str | None) -> NanoDetDetector:
    """Open the shipped weights and the model folder that chooses phrases."""
    return NanoDetDetector(settings, device)


DETECTOR = DetectorKind(
    settings=NanoDetSettings, open=open_detector, note="offline, for photographs: class-agnostic boxes of NanoDet-g"
)
