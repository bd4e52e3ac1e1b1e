"""The sigmoid losses: every image-text or region-phrase pair is a binary decision of its own.

Source: Sigmoid Loss for Language Image Pre-Training (arXiv 2303.15343), algorithm 1. The paper passes texts around a
ring of processes; here they are gathered, as for the softmax losses, since the rows of one process are far larger.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate.pretrain.losses.blocks import (
    DuplicateFilter,
    RegionLoss,
    gather_regions,
    row_blocks,
    scalar_like,
    widen,
    without_autocast,
)
from foveate.training.distributed import gather_with_grad, sum_with_grad, world


def sigmoid_loss(
    image_BE: Tensor,
    text_BE: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    row_chunk: int | None = None,
) -> Tensor:
    """Compute the sigmoid loss over images and texts of all processes: the sum over N x N pairs, divided by N.

    Args:
        image_BE: this process's image embeddings of unit length; every process has the same number.
        text_BE: text embeddings of unit length, row b belongs to image b.
        logit_scale: s = 1 / temperature; the paper starts at 10.
        logit_bias: b; the paper starts at -10, so that the many negatives do not dominate the first steps.
        row_chunk: rows of the B x N matrix computed at a time: same loss and gradient, less memory; None for all.

    Returns:
        A scalar in nats, the same on every process.
    """
    with without_autocast(image_BE):
        image_BE, text_NE = widen(image_BE), gather_with_grad(widen(text_BE))
        scale, bias = scalar_like(logit_scale, image_BE), scalar_like(logit_bias, image_BE)
        first = world().rank * len(image_BE)
        part, _ = sum_pairs(image_BE, text_NE, scale, bias, row_chunk=row_chunk, first=first)
        return sum_with_grad(part / max(len(text_NE), 1))


def sigmoid_region_loss(
    z_BE: Tensor,
    t_BE: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float,
    filter: str = "embedding",
    threshold: float = 0.9,
    phrase_ids: Tensor | None = None,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
    row_chunk: int | None = None,
) -> RegionLoss:
    """Compute the sigmoid loss over regions and phrases of all processes, without pairs of duplicate phrases.

    Arguments as of `region_text_loss`. There is one direction only: `r2t` and `t2r` are the loss itself. With R = 0
    it is exactly 0 with zero gradients.
    """
    with without_autocast(z_BE):
        rows = gather_regions(
            z_BE, t_BE, logit_scale, logit_bias=logit_bias, filter=filter, threshold=threshold, phrase_ids=phrase_ids,
            normalize=normalize, M=M, N=N,
        )  # fmt: skip
        assert rows.bias is not None
        part, masked = sum_pairs(
            rows.z_BE, rows.t_RE, rows.scale, rows.bias, duplicates=rows.duplicates, row_chunk=row_chunk,
            first=rows.first,
        )  # fmt: skip
        # A process without regions has no block, and so no graph: `zero` and the slice tie it to the others.
        part = part + rows.zero + rows.t_RE[:0].sum()
        # Both directions are the same sum over pairs.
        return RegionLoss.from_parts(part.expand(2) / rows.divisor, masked, total=rows.total)


def sum_pairs(
    z_BE: Tensor,
    t_RE: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    duplicates: DuplicateFilter | None = None,
    row_chunk: int | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Sum the terms of all pairs that are not masked, and count the masked ones.

    Args:
        z_BE: this process's rows. t_RE: the columns of all processes.
        duplicates, row_chunk, first: see `foveate.pretrain.losses.softmax.cross_entropies`.
    """

    def block(start: int, z_BE: Tensor, t_RE: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        mask_BR = None if duplicates is None else duplicates.mask(slice(start, start + len(z_BE)))
        total = pair_terms(z_BE @ t_RE.T, scale, bias, start=start, mask_BN=mask_BR)
        return total, torch.zeros((), device=z_BE.device) if mask_BR is None else mask_BR.sum()

    total, masked = z_BE.new_zeros(()), torch.zeros((), device=z_BE.device)
    for rows in row_blocks(len(z_BE), row_chunk=row_chunk):
        arguments = (first + rows.start, z_BE[rows], t_RE, scale, bias)
        # Blocks are computed again in the backward pass, so that the whole matrix is never kept.
        part, count = checkpoint(block, *arguments, use_reentrant=False) if row_chunk else block(*arguments)
        total, masked = total + part, masked + count
    return total, masked


def pair_terms(similarity_BN: Tensor, scale: Tensor, bias: Tensor, *, start: int, mask_BN: Tensor | None) -> Tensor:
    """Sum -log sigmoid(z (s x + b)) over a block of rows: z = 1 where row + `start` is the column, else -1.

    Args:
        similarity_BN: cosines x of some rows with all columns. scale, bias: s and b.
        start: column of the first row's positive.
        mask_BN: True where a pair is left out; positives are never left out.
    """
    logits_BN = scale * similarity_BN + bias
    rows = torch.arange(len(logits_BN), device=logits_BN.device)
    signs_BN = torch.full_like(logits_BN, -1.0)
    signs_BN[rows, rows + start] = 1.0
    # logsigmoid, because log(sigmoid(x)) underflows to -inf where a pair is badly wrong.
    terms_BN = -F.logsigmoid(signs_BN * logits_BN)
    return terms_BN.sum() if mask_BN is None else terms_BN.masked_fill(mask_BN, 0.0).sum()
