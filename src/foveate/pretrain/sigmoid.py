"""The sigmoid loss of SigLIP for images and texts, and for regions and phrases: each pair is judged by itself.

Source: Sigmoid Loss for Language Image Pre-Training (arXiv 2303.15343), algorithm 1. Over several processes each
computes its own rows against the gathered texts, as for the softmax losses (`foveate.pretrain.sharded`; no ring).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate.core.errors import choose
from foveate.pretrain.losses import (
    FILTERS,
    RegionLoss,
    _block_mask,
    _check_chunk,
    _divisor,
    _filter_keys,
    _no_autocast,
    _wide,
)


def pair_terms(similarity_BN: Tensor, scale: Tensor, bias: Tensor, *, start: int, mask_BN: Tensor | None) -> Tensor:
    """The sum of -log sigmoid(z (s x + b)) over a block of rows: z = 1 where row + `start` is the column, else -1.

    Args:
        similarity_BN: cosines x of some rows against all columns. scale, bias: s and b.
        start: column of the first row's positive.
        mask_BN: True where a pair is left out; positives are never left out.
    """
    logits_BN = scale * similarity_BN + bias
    rows = torch.arange(len(logits_BN), device=logits_BN.device)
    signs_BN = torch.full_like(logits_BN, -1.0)
    signs_BN[rows, rows + start] = 1.0
    terms_BN = -F.logsigmoid(signs_BN * logits_BN)
    return terms_BN.sum() if mask_BN is None else terms_BN.masked_fill(mask_BN, 0.0).sum()


def _pairs(
    z_RE: Tensor, t_RE: Tensor, scale: Tensor, bias: Tensor, *, row_chunk: int | None, filter: str, threshold: float,
    keys: Tensor | None, first: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The sum over all pairs that are left in, and how many are left out; blocks of rows are computed again for the
    backward pass, so that the whole matrix is never kept. `first` is the column of the first row's positive."""
    _check_chunk(row_chunk)

    def block(start: int, z_BE: Tensor, t_RE: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        rows = slice(start, start + len(z_BE))  # among all rows of the matrix
        mask_BR = None
        if filter != "none":
            mask_BR = _block_mask(rows, keys, filter=filter, threshold=threshold, like=t_RE.detach())
        total = pair_terms(z_BE @ t_RE.T, scale, bias, start=start, mask_BN=mask_BR)
        return total, torch.zeros((), device=z_BE.device) if mask_BR is None else mask_BR.sum()

    size = row_chunk or max(len(z_RE), 1)
    total, masked = z_RE.new_zeros(()), torch.zeros((), device=z_RE.device)
    for start in range(0, len(z_RE), size):
        arguments = (first + start, z_RE[start : start + size], t_RE, scale, bias)
        part, left_out = checkpoint(block, *arguments, use_reentrant=False) if row_chunk else block(*arguments)
        total, masked = total + part, masked + left_out
    return total, masked


def _numbers(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def sigmoid_loss(
    image_NE: Tensor,
    text_NE: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    row_chunk: int | None = None,
) -> Tensor:
    """The sigmoid loss of N images and their texts: the sum over all N x N pairs, divided by N.

    Args:
        image_NE, text_NE: of unit length, row n belongs to row n; they are not normalized again.
        logit_scale: s = 1 / temperature; the paper starts at 10. logit_bias: b; the paper starts at -10.
        row_chunk: rows of the N x N matrix at a time; same loss, same gradient, less memory.

    Returns:
        A scalar in nats, shape ().
    """
    with _no_autocast(image_NE):
        image_NE, text_NE = _wide(image_NE), _wide(text_NE)
        scale, bias = _numbers(logit_scale, image_NE), _numbers(logit_bias, image_NE)
        total, _ = _pairs(image_NE, text_NE, scale, bias, row_chunk=row_chunk, filter="none", threshold=1.0, keys=None)
        return total / max(len(image_NE), 1)


def sigmoid_region_loss(
    z_RE: Tensor,
    t_RE: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float,
    filter: str = "embedding",
    threshold: float = 0.9,
    phrases: Tensor | None = None,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
    row_chunk: int | None = None,
) -> RegionLoss:
    """The sigmoid loss of R regions and their phrases; pairs whose phrases say the same are left out.

    Arguments as of `foveate.pretrain.losses.region_text_loss`. There is one direction only: `r2t` and `t2r` are the
    loss itself. With R = 0 it is exactly 0 with zero gradients.
    """
    choose(filter, FILTERS, "duplicate filter")
    divisor = _divisor(len(z_RE), normalize=normalize, M=M, N=N)
    with _no_autocast(z_RE):
        z_RE, t_RE = _wide(z_RE), _wide(t_RE)
        scale, bias = _numbers(logit_scale, z_RE), _numbers(logit_bias, z_RE)
        if len(z_RE) == 0:
            zero = z_RE.sum() + t_RE.sum() + 0.0 * (scale.sum() + bias.sum())
            return RegionLoss(zero, zero, zero, torch.zeros((), device=z_RE.device), None)
        z_RE, t_RE = F.normalize(z_RE, dim=-1), F.normalize(t_RE, dim=-1)
        keys = _filter_keys(t_RE.detach(), filter=filter, phrases=phrases)
        total, masked = _pairs(
            z_RE, t_RE, scale, bias, row_chunk=row_chunk, filter=filter, threshold=threshold, keys=keys
        )
        loss = total / divisor
    return RegionLoss(loss, loss, loss, masked / max(len(z_RE) * (len(z_RE) - 1), 1), None)
