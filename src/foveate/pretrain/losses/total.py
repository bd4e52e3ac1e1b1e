"""Grounding loss (equation 3) and the weighted total (equation 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.pretrain.losses.blocks import region_divisor, widen, without_autocast
from foveate.training.distributed import rows_before, sum_with_grad


def grounding_loss(
    pred_B4: Tensor,
    target_B4: Tensor,
    *,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
) -> Tensor:
    """Compute the mean squared error of corner coordinates over the drawn boxes of all processes (equation 3).

    Args:
        pred_B4: this process's output of the box head, corners in [0, 1] of the model input, not clamped.
        target_B4: true corners (x1, y1, x2, y2) in [0, 1] of the model input.
        normalize: "regions" divides by 4 R, "fixed" by 4 M N; R counts the regions of all processes.

    Returns:
        A scalar, the same on every process; exactly 0 with zero gradient for R = 0.
    """
    _, total = rows_before(pred_B4)
    divisor = 4 * region_divisor(total, normalize=normalize, M=M, N=N)
    with without_autocast(pred_B4):
        return sum_with_grad((widen(pred_B4) - widen(target_B4)).square().sum() / divisor)


def labeled_fraction(counts_N: Tensor) -> Tensor:
    """Return the share of the images of all processes that have at least one region, in [0, 1].

    Args:
        counts_N: number of drawn regions of each image.
    """
    dtype = torch.float32 if counts_N.device.type == "mps" else torch.float64  # MPS has no float64
    return (counts_N > 0).to(dtype).mean() if len(counts_N) else torch.zeros((), dtype=torch.float64)


def total_loss(
    clip: Tensor,
    region: Tensor | float = 0.0,
    grounding: Tensor | float = 0.0,
    *,
    labeled_fraction: Tensor | float,
    lambda_scale: float = 1.0,
    grounding_weight: float = 1.0,
) -> Tensor:
    """Return clip + lambda (region + grounding_weight grounding), lambda = lambda_scale x labeled_fraction (eq. 4).

    Without labeled images the total is the CLIP loss bit for bit, and the Prompter's gradients are zeros.
    """
    weight = lambda_scale * labeled_fraction
    regions = torch.as_tensor(weight * (region + grounding_weight * grounding), dtype=clip.dtype, device=clip.device)
    return clip + regions
