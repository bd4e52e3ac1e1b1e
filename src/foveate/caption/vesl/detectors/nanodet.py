"""The offline detector for photographs: NanoDet-g finds things, whatever they are; a model folder names them.

The detector knows COCO's 80 classes, and its boxes are good beyond them (docs/methods/vesl.md); its class names are not
used. A box's phrase is the one of the caption whose embedding is nearest to the box's, so what a caption does not name
is still given one of its phrases: `least_similarity` drops such boxes.
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
from foveate.caption.vesl.detection import Detector, DetectorKind, Found, Shown
from foveate.caption.vesl.geometry import in_image, padded_square
from foveate.caption.vesl.similarity import Judge
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.vision.device import choose_device


class NanoDetSettings(Settings):
    """Which boxes are kept, and who finds their phrase."""

    model: str = Field(description="model folder of `foveate pretrain` whose region embeddings choose the phrase")
    threshold: float = Field(0.3, ge=0, lt=1, description="least score of a box, its best class's, strict")
    overlap: float = Field(0.5, gt=0, le=1, description="of boxes that overlap more, the best one stays")
    most: int = Field(20, ge=1, description="boxes of an image that are kept, the best ones")
    least_similarity: float = Field(-1.0, ge=-1, le=1, description="least cosine of a box with its phrase")
    fit: Literal["pad", "stretch"] = Field("pad", description="pad right and below to a square, or stretch to it")


class NanoDetDetector(Detector):
    """See the module's text.

    Raises:
        UserError: when the shipped weights are damaged, or `model` is no model folder.
    """

    name, input_px = "nanodet", nanodet_network.SIDE

    def __init__(self, settings: NanoDetSettings, device: str | None) -> None:
        self.settings = settings
        self.model = f"nanodet-g, phrases by {settings.model}"
        self._judge = Judge(settings.model, device)
        self.version = f"{nanodet_network.SHA256[:12]} {self._judge.version}"
        self._device = choose_device(device or "auto")
        self._network = nanodet_network.load().to(self._device)

    @torch.inference_mode()
    def detect(self, images: Sequence[Shown], phrases: Sequence[Sequence[str]]) -> list[Found]:
        squares = np.stack([np.asarray(self._square(one.pixels)) for one in images])
        scores_BAC, boxes_BA4 = self._network(torch.from_numpy(squares).permute(0, 3, 1, 2).to(self._device))
        tokens, placements = self._judge.look(images)
        answers = []
        for number, (one, some) in enumerate(zip(images, phrases, strict=True)):
            score_A = scores_BAC[number].amax(dim=-1)
            sure = score_A > self.settings.threshold
            score_K, boxes_K4 = score_A[sure], boxes_BA4[number][sure]
            best = nms(boxes_K4, score_K, self.settings.overlap)[: self.settings.most]
            inside_K4 = (boxes_K4[best].double() / self.input_px).cpu().numpy()
            if self.settings.fit == "stretch":  # shares of the image already: back to shares of the padded square
                inside_K4 = inside_K4 * np.array((one.width, one.height) * 2) / max(one.width, one.height)
            boxes_J4, left = in_image(inside_K4, width=one.width, height=one.height)
            texts_QE = self._judge.phrases(some)
            cosine_JQ = self._judge.cosines(tokens, placements[number], number, boxes_J4, texts_QE)
            phrase_J = cosine_JQ.argmax(axis=1)
            cosine_J = cosine_JQ.max(axis=1)
            kept = cosine_J >= self.settings.least_similarity
            scores_J = score_K[best].double().cpu().numpy()[left]
            thin = int((~left).sum())
            answers.append(Found(boxes_J4[kept], scores_J[kept], phrase_J[kept], cosine_J[kept], thin))
        return answers

    def _square(self, image: Image.Image) -> Image.Image:
        if self.settings.fit == "pad":
            return padded_square(image, self.input_px)
        return image.convert("RGB").resize((self.input_px,) * 2, Image.Resampling.BICUBIC)


def open_detector(settings: NanoDetSettings, collection: Collection, device: str | None) -> NanoDetDetector:
    """See `NanoDetDetector`."""
    return NanoDetDetector(settings, device)


DETECTOR = DetectorKind(
    settings=NanoDetSettings, open=open_detector, note="offline, for photographs: class-agnostic boxes of NanoDet-g"
)
