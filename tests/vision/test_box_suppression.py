"""Non-maximum suppression against torchvision's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision.ops import nms

from foveate.vision.detectors import suppress_overlaps


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [0.1, 0.5, 0.75, 1.0])
def test_the_same_boxes_are_chosen_as_by_torchvision(seed: int, limit: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    centers_N2 = 400 * torch.rand(300, 2, generator=generator)
    sides_N2 = 5 + 120 * torch.rand(300, 2, generator=generator)
    boxes_N4 = torch.cat([centers_N2 - sides_N2 / 2, centers_N2 + sides_N2 / 2], dim=1)
    # Two digits: many scores are equal, and equal ones keep their order.
    scores_N = torch.rand(300, generator=generator).round(decimals=2)
    assert torch.equal(suppress_overlaps(boxes_N4, scores_N, limit), nms(boxes_N4, scores_N, limit))


def test_a_box_that_overlaps_only_a_suppressed_one_is_kept() -> None:
    boxes_N4 = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10], [12, 0, 22, 10]])
    assert suppress_overlaps(boxes_N4, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.3).tolist() == [0, 2]


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_none_and_one_box(num_boxes: int) -> None:
    boxes_N4 = torch.zeros(num_boxes, 4)
    assert suppress_overlaps(boxes_N4, torch.ones(num_boxes), 0.5).tolist() == list(range(num_boxes))


def test_boxes_without_an_area_suppress_nothing() -> None:
    boxes_N4 = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    assert sorted(suppress_overlaps(boxes_N4, torch.ones(3), 0.5).tolist()) == [0, 1, 2]


def test_a_detector_is_imported_without_torchvision() -> None:
    """Its operators import torch's compiler, which doubles the start of every command that finds boxes."""
    code = "import sys, foveate.vision.detectors, foveate.vision.bridge; print('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
