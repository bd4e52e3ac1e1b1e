"""The RoI baseline against means worked out by hand and torchvision's own operator."""

from __future__ import annotations

import subprocess
import sys

import torch
from torchvision.ops import roi_align

from foveate.core.errors import UserError
from foveate.vision.regions.roi import RoiPooler, roi_pool
from naming import raises_naming


def test_a_box_of_whole_patches_is_their_mean() -> None:
    tokens = torch.arange(6, dtype=torch.float64).view(1, 6, 1)  # 2 rows x 3 columns: 0 1 2 / 3 4 5
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1 / 3, 0.5, 2 / 3, 1.0], [0.0, 0.0, 1 / 3, 1.0]], dtype=torch.float64)
    found = roi_pool(tokens, (2, 3), boxes, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found[:, 0], torch.tensor([2.5, 4.0, 1.5], dtype=torch.float64))


def test_equals_torchvision_on_the_patch_map() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1 + 12, 8, generator=generator)  # a class token in front
    first, second = torch.rand(2, 7, 2, generator=generator)
    boxes = torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=1)
    image_index = torch.tensor([2, 0, 0, 1, 2, 2, 0])
    maps = tokens[:, 1:].view(3, 3, 4, 8).permute(0, 3, 1, 2).contiguous()
    for row in range(7):
        x1, y1, x2, y2 = boxes[row].tolist()
        roi = torch.tensor([[0.0, x1 * 4, y1 * 3, x2 * 4, y2 * 3]])
        one = maps[image_index[row] : image_index[row] + 1]
        expected = roi_align(one, roi, 1, 1.0, -1, aligned=True).flatten()
        found = roi_pool(tokens, (3, 4), boxes, image_index)[row]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)


def test_without_a_gradient_the_package_stays_unloaded_and_the_values_are_the_same() -> None:
    script = """
import sys, torch
from foveate.vision.regions.roi import align_boxes
maps = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0))
boxes, index = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.3, 1.0, 0.8]]), torch.tensor([1, 0])
found = align_boxes(maps, boxes, index, side=3)
assert "torchvision" not in sys.modules
trained = align_boxes(maps.requires_grad_(), boxes, index, side=3)
assert "torchvision" in sys.modules
trained.sum().backward()
assert maps.grad is not None and maps.grad.abs().sum() > 0
assert torch.equal(found, trained)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_pooler_projects_and_accepts_half_precision_and_no_box() -> None:
    roi = RoiPooler(width=8, embed_dim=5)
    tokens = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.4, 0.9]])
    image_index = torch.tensor([1, 0])
    found = roi(tokens, (3, 4), boxes, image_index)
    assert found.shape == (2, 5)
    assert roi(tokens, (3, 4), boxes[:0], image_index[:0]).shape == (0, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = roi(tokens.bfloat16(), (3, 4), boxes, image_index)
    torch.testing.assert_close(half.float(), found, atol=0.05, rtol=0.05)
    with raises_naming(UserError, "1"):
        roi(tokens, (3, 4), torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.2, 0.9]]), image_index)
