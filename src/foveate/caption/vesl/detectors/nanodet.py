"""Offline detector for photographs: NanoDet-g proposes boxes, a model folder names them.

The detector knows COCO's 80 classes, and its boxes are good beyond them (docs/methods/vesl.md), so its class names are
not used. A box's phrase is the one of the caption whose embedding is nearest to the box's. What a caption does not name
gets one of its phrases all the same: `min_similarity` drops such boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torchvision.ops import nms

from foveate.caption.vesl import nanodet_network
from foveate.caption.vesl.detection import (
    Detections,
    Detector,
    DetectorInput,
    DetectorKind,
    boxes_in_image,
    padded_square,
)
from foveate.caption.vesl.similarity import RegionScorer
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.vision.precision import choose_device


class NanoDetSettings(Settings):
    """Limits of the boxes, and the model that selects their phrases."""

    model: str = Field(description="model folder of `foveate pretrain` whose region embeddings choose the phrase")
    threshold: float = Field(0.3, ge=0, lt=1, description="minimum score of a box, its best class's, strict")
    overlap: float = Field(0.5, gt=0, le=1, description="of boxes with a higher IoU only the best stays (NMS)")
    max_boxes: int = Field(20, ge=1, description="boxes of an image that are kept, the best ones")
    min_similarity: float = Field(-1.0, ge=-1, le=1, description="minimum cosine of a box with its phrase")
    fit: Literal["pad", "stretch"] = Field("pad", description="pad right and below to a square, or stretch to it")


class NanoDetDetector(Detector):
    """NanoDet-g's boxes with phrases of a caption.

    Raises:
        UserError: the shipped weights are damaged, or `model` is no model folder.
    """

    name, input_px = "nanodet", nanodet_network.SIDE

    def __init__(self, settings: NanoDetSettings, device: str | None) -> None:
        self.settings = settings
        self.model = f"nanodet-g, phrases by {settings.model}"
        self._scorer = RegionScorer(settings.model, device)
        self.version = f"{nanodet_network.SHA256[:12]} {self._scorer.version}"
        self._device = choose_device(device or "auto")
        self._network = nanodet_network.load_nanodet().to(self._device)

    @torch.inference_mode()
    def detect(self, images: Sequence[DetectorInput], phrases: Sequence[Sequence[str]]) -> list[Detections]:
        squares = np.stack([np.asarray(self._to_square(image.pixels)) for image in images])
        scores_BAC, boxes_BA4 = self._network(torch.from_numpy(squares).permute(0, 3, 1, 2).to(self._device))
        tokens, placements = self._scorer.encode_images(images)
        results = []
        for index, (image, queries) in enumerate(zip(images, phrases, strict=True)):
            # The best class's score serves as objectness; NMS runs over all classes together, for one thing that two
            # classes claim is still one region.
            score_A = scores_BAC[index].amax(dim=-1)
            confident_A = score_A > self.settings.threshold
            score_K, boxes_K4 = score_A[confident_A], boxes_BA4[index][confident_A]
            best = nms(boxes_K4, score_K, self.settings.overlap)[: self.settings.max_boxes]
            # In double precision, like every box that is stored.
            inside_K4 = (boxes_K4[best].double() / self.input_px).cpu().numpy()
            if self.settings.fit == "stretch":  # shares of the image already: back to shares of the padded square
                inside_K4 = inside_K4 * np.array((image.width, image.height) * 2) / max(image.width, image.height)
            boxes_J4, valid_K = boxes_in_image(inside_K4, width=image.width, height=image.height)
            texts_QE = self._scorer.embed(queries)
            cosine_JQ = self._scorer.cosines(tokens, placements[index], index, boxes_J4, texts_QE)
            phrase_J = cosine_JQ.argmax(axis=1)
            cosine_J = cosine_JQ.max(axis=1)
            keep_J = cosine_J >= self.settings.min_similarity
            scores_J = score_K[best].double().cpu().numpy()[valid_K]
            thin = int((~valid_K).sum())
            results.append(Detections(boxes_J4[keep_J], scores_J[keep_J], phrase_J[keep_J], cosine_J[keep_J], thin))
        return results

    def _to_square(self, image: Image.Image) -> Image.Image:
        if self.settings.fit == "pad":
            return padded_square(image, self.input_px)
        return image.convert("RGB").resize((self.input_px,) * 2, Image.Resampling.BICUBIC)


def open_detector(settings: NanoDetSettings, collection: Collection, device: str | None) -> NanoDetDetector:
    """Open the shipped weights and the model folder that chooses phrases."""
    return NanoDetDetector(settings, device)


DETECTOR = DetectorKind(
    settings=NanoDetSettings, open=open_detector, note="offline, for photographs: class-agnostic boxes of NanoDet-g"
)
