"""The shipped detector on photographs whose content is known: detections, not logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from foveate.core.errors import UserError
from foveate.records.boxes import intersection_over_union
from foveate.vision import detectors
from foveate.vision.detectors import (
    SIDE,
    STRIDES,
    NanoDet,
    NanoDetProposer,
    ProposalSettings,
    decode_boxes,
    load_nanodet,
)
from naming import raises_naming

PERSON, MOTORCYCLE, CUP, CAT = 0, 3, 41, 15


def square(pixels: np.ndarray, *, padded: bool) -> Tensor:
    """An image as the network reads it, [1, 3, 416, 416]."""
    image = Image.fromarray(pixels)
    longest = max(image.size)
    size = (SIDE, SIDE) if not padded else tuple(round(side * SIDE / longest) for side in image.size)
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("image", "padded", "kind", "score", "box"),
    [
        ("astronaut", True, PERSON, 0.74, (12, 12, 296, 413)),
        ("motorcycle", True, MOTORCYCLE, 0.79, (56, 46, 386, 252)),
        ("coffee", False, CUP, 0.53, (99, 11, 296, 414)),
        ("coffee", True, CUP, 0.34, (119, 14, 288, 173)),
        ("chelsea", True, CAT, 0.54, (2, 2, 407, 273)),
    ],
)
def test_known_objects_of_photographs_are_detected(
    image: str, padded: bool, kind: int, score: float, box: tuple[int, ...]
) -> None:
    pixels = data.stereo_motorcycle()[0] if image == "motorcycle" else getattr(data, image)()
    with torch.no_grad():
        scores_1AC, boxes_1A4 = load_nanodet()(square(pixels, padded=padded))
    best = int(scores_1AC[0, :, kind].argmax())
    assert float(scores_1AC[0, best, kind]) == pytest.approx(score, abs=0.01)
    corners = boxes_1A4[0, best].double().numpy().clip(0, SIDE)
    assert intersection_over_union(corners[None], np.array([box], dtype=float))[0] > 0.95


def test_the_network_is_the_published_size() -> None:
    network = load_nanodet()
    assert sum(value.numel() for value in network.parameters()) == 3_786_068
    assert sum((SIDE // stride) ** 2 for stride in STRIDES) == 3_549
    assert all(value.dtype == torch.float32 for value in network.parameters())


def test_boxes_are_expected_distances_from_the_centers_of_cells() -> None:
    sides = torch.full((1, 6, 44), -50.0)
    for side, distance in enumerate((1, 2, 3, 4)):
        sides[0, :, side * 11 + distance] = 50.0
    boxes = decode_boxes(sides, (2, 3), 8)
    assert boxes[0, 0].tolist() == pytest.approx([4 - 8, 4 - 16, 4 + 24, 4 + 32], abs=1e-4)
    assert boxes[0, 5].tolist() == pytest.approx([20 - 8, 12 - 16, 20 + 24, 12 + 32], abs=1e-4)


def test_wrong_sha256_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    load_nanodet.cache_clear()
    monkeypatch.setattr(detectors, "SHA256", "0" * 64)
    with raises_naming(UserError, "nanodet-g.safetensors", "sha256", "0000"):
        load_nanodet()
    load_nanodet.cache_clear()


def test_batching_does_not_change_detections() -> None:
    network = load_nanodet()
    assert isinstance(network, NanoDet)
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        batched, single = network(pixels), network(pixels[1:])
    torch.testing.assert_close(batched[0][1:], single[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched[1][1:], single[1], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_proposals_are_shares_of_the_image(fit: str) -> None:
    pixels = data.chelsea()  # 451 x 300
    proposer = NanoDetProposer(ProposalSettings.model_validate({"fit": fit}), device="cpu")
    image = Image.fromarray(pixels)
    (proposals,) = proposer.propose([proposer.to_square(image)], [image.size])
    assert proposals.scores_K.tolist() == sorted(proposals.scores_K, reverse=True)
    assert proposals.scores_K[0] > 0.3
    assert proposals.boxes_K4.min() >= 0
    assert proposals.boxes_K4.max() <= 1
    assert intersection_over_union(proposals.boxes_K4[:1], np.array([[0.0, 0.0, 1.0, 1.0]]))[0] > 0.8
    few = NanoDetProposer(ProposalSettings(threshold=0.0, max_boxes=2), device="cpu")
    assert len(few.propose([few.to_square(image)], [image.size])[0].boxes_K4) == 2
