"""Boxes of NanoDet-g: where something is, and the nearest of COCO's 80 classes.

The network's boxes are good beyond these classes (docs/methods/vesl.md), so a box's score is its best class's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torchvision.ops import nms

from foveate.core.devices import choose_device
from foveate.core.recipes import Settings
from foveate.vision.detectors.nanodet_network import SHA256, SIDE, load_nanodet
from foveate.vision.detectors.padded_square import boxes_in_image, padded_square

# Of COCO, in the order of the network's outputs.
CLASS_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


class ProposalSettings(Settings):
    """Limits of the boxes."""

    threshold: float = Field(0.3, ge=0, lt=1, description="minimum score of a box, its best class's, strict")
    overlap: float = Field(0.5, gt=0, le=1, description="of boxes with a higher IoU only the best stays (NMS)")
    max_boxes: int = Field(20, ge=1, description="boxes of an image that are kept, the best ones")
    fit: Literal["pad", "stretch"] = Field("pad", description="pad right and below to a square, or stretch to it")


@dataclass(frozen=True, slots=True)
class Proposals:
    """Boxes of one image, best first.

    Attributes:
        boxes_K4: x1, y1, x2, y2 in [0, 1] of the image.
        scores_K: confidence in [0, 1]. classes_K: the best class of each, an index into `CLASS_NAMES`.
        thin: boxes dropped because a side was below `padded_square.MIN_SIDE_PX`.
    """

    boxes_K4: NDArray[np.float64]
    scores_K: NDArray[np.float64]
    classes_K: NDArray[np.int64]
    thin: int


class NanoDetProposer:
    """Propose boxes of whatever COCO's detector takes for an object.

    Raises:
        UserError: the shipped weights are damaged.
    """

    input_px, version = SIDE, SHA256[:12]

    def __init__(self, settings: ProposalSettings, device: str | None = None) -> None:
        self.settings = settings
        self._device = choose_device(device or "auto")
        self._network = load_nanodet().to(self._device)

    def to_square(self, image: Image.Image) -> NDArray[np.uint8]:
        """Fit an image to the network's square, [416, 416, 3]: apart from `propose`, for threads that decode."""
        if self.settings.fit == "pad":
            return np.asarray(padded_square(image, self.input_px))
        return np.asarray(image.convert("RGB").resize((self.input_px,) * 2, Image.Resampling.BICUBIC))

    @torch.inference_mode()
    def propose(self, squares: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Detect in a batch of squares.

        Args:
            sizes: width and height of each original in pixels.
        """
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).to(self._device)
        scores_BAC, boxes_BA4 = self._network(pixels)
        proposals = []
        for scores_AC, boxes_A4, (width, height) in zip(scores_BAC, boxes_BA4, sizes, strict=True):
            # The best class's score serves as objectness; NMS runs over all classes together, for one thing that two
            # classes claim is still one region.
            score_A, class_A = scores_AC.max(dim=-1)
            confident_A = score_A > self.settings.threshold
            score_K, boxes_K4 = score_A[confident_A], boxes_A4[confident_A]
            best = nms(boxes_K4, score_K, self.settings.overlap)[: self.settings.max_boxes]
            # In double precision, like every box that is stored.
            inside_K4 = (boxes_K4[best].double() / self.input_px).cpu().numpy()
            if self.settings.fit == "stretch":  # shares of the image already: back to shares of the padded square
                inside_K4 = inside_K4 * np.array((width, height) * 2) / max(width, height)
            boxes_J4, valid_K = boxes_in_image(inside_K4, width=width, height=height)
            scores_J = score_K[best].double().cpu().numpy()[valid_K]
            classes_J = class_A[confident_A][best].cpu().numpy()[valid_K]
            proposals.append(Proposals(boxes_J4, scores_J, classes_J, int((~valid_K).sum())))
        return proposals
