"""The losses over several processes: each computes the rows of its own images and regions, 1/world of the matrices.

A process compares its own images with the texts of all, which are gathered with gradient; column sums are joined
over processes as one number a column. So images and regions need not be gathered at all. Every process returns the
loss of the whole batch, with its own part of the gradient (`foveate.training.distributed.sum_with_grad`). A single
process gets the functions of `foveate.pretrain.losses` and `foveate.pretrain.sigmoid`, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import choose
from foveate.pretrain.losses import (
    FILTERS,
    RegionLoss,
    _check_chunk,
    _divisor,
    _filter_keys,
    _no_autocast,
    _wide,
    block_terms,
    clip_loss,
    grounding_loss,
    region_text_loss,
)
from foveate.pretrain.sigmoid import _numbers, _pairs, sigmoid_loss, sigmoid_region_loss
from foveate.training.distributed import (
    all_sum,
    gather_ragged_with_grad,
    gather_with_grad,
    rows_before,
    sum_with_grad,
    world,
)


def sharded_clip_loss(
    image_BE: Tensor, text_BE: Tensor, logit_scale: Tensor | float, *, row_chunk: int | None = None
) -> Tensor:
    """`clip_loss` of all ranks' images and texts.

    Args:
        image_BE, text_BE: of this rank, of unit length; every rank has the same number.
        logit_scale, row_chunk: see `clip_loss`; chunks are of this rank's rows.

    Returns:
        A scalar in nats, the same on every rank.
    """
    if world().size == 1:
        return clip_loss(image_BE, text_BE, logit_scale, row_chunk=row_chunk)
    _check_chunk(row_chunk)
    with _no_autocast(image_BE):
        image_BE, text_NE = _wide(image_BE), gather_with_grad(_wide(text_BE))
        scale, first = _numbers(logit_scale, image_BE), world().rank * len(image_BE)
        row_B, column_N, diagonal_B, _ = block_terms(
            image_BE, text_NE, scale, row_chunk=row_chunk, first=first, shared=True
        )
        column_B = column_N[first : first + len(image_BE)]
        return sum_with_grad((row_B + column_B - 2 * diagonal_B).sum() / (2 * len(text_NE)))


def sharded_sigmoid_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    row_chunk: int | None = None,
) -> Tensor:
    """`sigmoid_loss` of all ranks' images and texts; arguments and result as of `sharded_clip_loss`."""
    if world().size == 1:
        return sigmoid_loss(image_BE, text_BE, logit_scale, logit_bias, row_chunk=row_chunk)
    with _no_autocast(image_BE):
        image_BE, text_NE = _wide(image_BE), gather_with_grad(_wide(text_BE))
        scale, bias = _numbers(logit_scale, image_BE), _numbers(logit_bias, image_BE)
        first = world().rank * len(image_BE)
        options: dict[str, Any] = {"filter": "none", "threshold": 1.0, "keys": None}
        part, _ = _pairs(image_BE, text_NE, scale, bias, row_chunk=row_chunk, first=first, **options)
        return sum_with_grad(part / len(text_NE))


def sharded_region_text_loss(
    z_BE: Tensor,
    t_BE: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
    filter: str = "embedding",
    threshold: float = 0.9,
    phrases: Tensor | None = None,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
    row_chunk: int | None = None,
) -> RegionLoss:
    """`region_text_loss` of all ranks' regions, or with a `logit_bias` `sigmoid_region_loss`.

    Args:
        z_BE, t_BE: region and phrase embeddings of this rank, of any length; each rank has its own number, none too.
        phrases: integer identities of this rank's phrases, wanted by the filter "exact".
        The others: see `region_text_loss`. N: images of the batch of all ranks.

    Returns:
        `RegionLoss`, the same on every rank; `mask_RR` is None with several ranks.
    """
    options: dict[str, Any] = {"filter": filter, "threshold": threshold, "row_chunk": row_chunk}
    if world().size == 1:
        options |= {"phrases": phrases, "normalize": normalize, "M": M, "N": N}
        if logit_bias is None:
            return region_text_loss(z_BE, t_BE, logit_scale, **options)
        return sigmoid_region_loss(z_BE, t_BE, logit_scale, logit_bias=logit_bias, **options)
    choose(filter, FILTERS, "duplicate filter")
    _check_chunk(row_chunk)
    first, total = rows_before(z_BE)
    divisor = _divisor(total, normalize=normalize, M=M, N=N)
    if filter == "exact" and phrases is not None:
        phrases = gather_ragged_with_grad(phrases[:, None])[:, 0]
    with _no_autocast(z_BE):
        z_BE, t_BE = _wide(z_BE), _wide(t_BE)
        scale = _numbers(logit_scale, z_BE)
        bias = None if logit_bias is None else _numbers(logit_bias, z_BE)
        # Ties a rank without regions to everything, so that it joins every collective of the backward pass.
        tied = z_BE[:0].sum() + t_BE[:0].sum() + 0.0 * (scale.sum() + (0.0 if bias is None else bias.sum()))
        if total == 0:
            return RegionLoss(tied, tied, tied, torch.zeros((), device=z_BE.device), None)
        z_BE = F.normalize(z_BE, dim=-1)
        t_RE = gather_ragged_with_grad(F.normalize(t_BE, dim=-1))
        keys = _filter_keys(t_RE.detach(), filter=filter, phrases=phrases)
        if bias is None:
            row_B, column_R, diagonal_B, masked = block_terms(
                z_BE, t_RE, scale, keys=keys, first=first, shared=True, **options
            )
            column_B = column_R[first : first + len(z_BE)]
            parts = torch.stack(((row_B - diagonal_B).sum(), (column_B - diagonal_B).sum())) / divisor
        else:
            part, masked = _pairs(z_BE, t_RE, scale, bias, keys=keys, first=first, **options)
            parts = (part + tied + t_RE[:0].sum()).expand(2) / divisor
        r2t, t2r = sum_with_grad(parts).unbind(0)
        masked_fraction = all_sum(masked) / max(total * (total - 1), 1)
    return RegionLoss((r2t + t2r) / 2, r2t, t2r, masked_fraction, None)


def sharded_grounding_loss(
    pred_B4: Tensor,
    target_B4: Tensor,
    *,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
) -> Tensor:
    """`grounding_loss` of all ranks' regions, from those of this rank; the divisor is that of all."""
    if world().size == 1:
        return grounding_loss(pred_B4, target_B4, normalize=normalize, M=M, N=N)
    _, total = rows_before(pred_B4)
    divisor = 4 * _divisor(total, normalize=normalize, M=M, N=N)
    with _no_autocast(pred_B4):
        return sum_with_grad((_wide(pred_B4) - _wide(target_B4)).square().sum() / divisor)
