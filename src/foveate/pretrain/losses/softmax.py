"""The softmax losses of CLIP (equation 1) and CLOC (equation 2), a block of rows of the logits at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from foveate.pretrain.losses.blocks import (
    DuplicateFilter,
    RegionLoss,
    gather_regions,
    row_blocks,
    scalar_like,
    widen,
    without_autocast,
)
from foveate.training.distributed import all_max, all_sum, gather_with_grad, sum_with_grad, world


def clip_loss(
    image_BE: Tensor, text_BE: Tensor, logit_scale: Tensor | float, *, row_chunk: int | None = None
) -> Tensor:
    """Compute the symmetric image-text contrastive loss over images and texts of all processes (equation 1).

    Args:
        image_BE: this process's image embeddings of unit length; every process has the same number.
        text_BE: text embeddings of unit length, row b belongs to image b.
        logit_scale: 1 / temperature, the exponential of the learned parameter.
        row_chunk: rows of the B x N matrix computed at a time: same loss and gradient, less memory; None for all.

    Returns:
        A scalar in nats, the same on every process: 0 for one pair, ln N when all similarities are equal.

    Raises:
        UserError: for `row_chunk` below 1.
    """
    # Compute in float32 at least: at a scale of 100, bfloat16 has steps of 0.5 between the largest logits.
    with without_autocast(image_BE):
        image_BE, text_NE = widen(image_BE), gather_with_grad(widen(text_BE))
        scale, first = scalar_like(logit_scale, image_BE), world().rank * len(image_BE)
        row_B, column_B, _ = cross_entropies(image_BE, text_NE, scale, row_chunk=row_chunk, first=first)
        return sum_with_grad((row_B + column_B).sum() / (2 * len(text_NE)))


def region_text_loss(
    z_BE: Tensor,
    t_BE: Tensor,
    logit_scale: Tensor | float,
    *,
    filter: str = "embedding",
    threshold: float = 0.9,
    phrase_ids: Tensor | None = None,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
    row_chunk: int | None = None,
) -> RegionLoss:
    """Compute the symmetric region-text contrastive loss over the regions of all processes (equation 2).

    The negatives of a region are all other drawn phrases, those of its own image too, except the duplicates that
    `duplicate_mask` names. Embeddings of any length go in; cosines are taken in at least float32.

    Args:
        z_BE: this process's region embeddings; each process has its own number, none too.
        t_BE: phrase embeddings, row b belongs to region b.
        logit_scale: 1 / temperature.
        filter, threshold, phrase_ids: see `duplicate_mask`; identities of this process's phrases.
        normalize: "regions" divides by R, "fixed" by M N as the paper prints it.
        M: maximum of regions drawn per image. N: images of the batch of all processes. Both required by "fixed".
        row_chunk: rows of the matrix computed at a time: same loss and gradient, less memory; None for all.

    Returns:
        `RegionLoss`, the same on every process. Exactly 0 with zero gradients for R = 0, and 0 for R = 1.

    Raises:
        UserError: for unknown options, "fixed" without M and N, or `row_chunk` below 1.
    """
    with without_autocast(z_BE):
        rows = gather_regions(
            z_BE, t_BE, logit_scale, logit_bias=None, filter=filter, threshold=threshold, phrase_ids=phrase_ids,
            normalize=normalize, M=M, N=N,
        )  # fmt: skip
        if rows.total == 0:
            return RegionLoss.from_parts(rows.zero.expand(2), torch.zeros((), device=z_BE.device), total=0)
        row_B, column_B, masked = cross_entropies(
            rows.z_BE, rows.t_RE, rows.scale, duplicates=rows.duplicates, row_chunk=row_chunk, first=rows.first
        )
        parts_2 = torch.stack((row_B.sum(), column_B.sum())) / rows.divisor
        return RegionLoss.from_parts(parts_2, masked, total=rows.total)


def cross_entropies(
    z_BE: Tensor,
    t_RE: Tensor,
    scale: Tensor,
    *,
    duplicates: DuplicateFilter | None = None,
    row_chunk: int | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross entropy of each row [B], of the column of its positive [B], and the number of masked entries.

    Args:
        z_BE: this process's rows. t_RE: the columns of all processes. scale: of the logits.
        duplicates: entries that are left out; None leaves out nothing.
        row_chunk: rows computed at a time; None for all.
        first: column of the first row's positive.
    """
    blocks = row_blocks(len(z_BE), row_chunk=row_chunk)
    return _CrossEntropies.apply(z_BE, t_RE, scale, duplicates or DuplicateFilter(), blocks, first)


class _CrossEntropies(torch.autograd.Function):
    """Cross entropies of rows and columns of masked logits, a block of rows at a time, in both passes.

    Written by hand because autograd would keep every block: with 4 regions of each of 32,768 images the whole matrix
    has 1.7e10 entries. Here memory is chunk x R. Column sums are joined over processes, in the backward pass their
    gradients too; the gradient of t_RE is that of this process's rows only, as `gather_with_grad` expects it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z_BE: Tensor,
        t_RE: Tensor,
        scale: Tensor,
        duplicates: DuplicateFilter,
        blocks: list[slice],
        first: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Log-sum-exp as maximum and logarithm apart: at a scale of 100 their float32 sum would round to 8e-6, which
        # is then the relative error of every softmax probability.
        row_max_B, row_log_B, diagonal_B = (torch.empty_like(z_BE[:, 0]) for _ in range(3))
        column_max_R, column_sum_R = torch.full_like(t_RE[:, 0], -math.inf), torch.zeros_like(t_RE[:, 0])
        masked = torch.zeros((), dtype=torch.int64, device=z_BE.device)
        # A single block is kept for the backward pass: computing it again would save no memory at the peak.
        cached: list[Tensor] = []
        for rows in blocks:
            logits, mask = _block_logits(z_BE, t_RE, scale, duplicates, rows=rows, first=first)
            row_max_B[rows] = logits.amax(1)
            row_log_B[rows] = (logits - row_max_B[rows, None]).exp_().sum(1).log_()
            # Sums of the columns so far are carried over to the new maximum, as in online softmax.
            new_max_R = torch.maximum(column_max_R, logits.amax(0))
            # A column that is masked in all rows so far has a maximum of -inf, and -inf - -inf would be NaN.
            finite_R = new_max_R.masked_fill(new_max_R == -math.inf, 0.0)
            column_sum_R = column_sum_R * (column_max_R - finite_R).exp_() + (logits - finite_R).exp_().sum(0)
            column_max_R = new_max_R
            diagonal_B[rows] = logits.diagonal(first + rows.start)
            if mask is not None:
                masked += mask.sum()
            cached = [logits] if len(blocks) == 1 else []
        # Some process has the positive of each column, so the joined maximum is finite.
        joined_max_R = all_max(column_max_R)
        column_log_R = all_sum(column_sum_R * (column_max_R - joined_max_R).exp_()).log_()
        ctx.save_for_backward(z_BE, t_RE, scale, row_max_B, row_log_B, joined_max_R, column_log_R, *cached)
        ctx.duplicates, ctx.blocks, ctx.first = duplicates, blocks, first
        ctx.mark_non_differentiable(masked)
        positives = slice(first, first + len(z_BE))
        # The two large numbers first: they nearly cancel where the positive is the best match; the rest stays exact.
        row_B = (row_max_B - diagonal_B) + row_log_B
        column_B = (joined_max_R[positives] - diagonal_B) + column_log_R[positives]
        return row_B, column_B, masked

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        d_row_B, d_column_B, _ = grad_outputs
        z_BE, t_RE, scale, row_max_B, row_log_B, column_max_R, column_log_R, *cached = ctx.saved_tensors
        # The rows of every process are part of each column: every process needs the gradients of all columns.
        d_column_R = torch.zeros_like(column_max_R)
        d_column_R[ctx.first : ctx.first + len(z_BE)] = d_column_B
        d_column_R = all_sum(d_column_R)
        dz_BE, dt_RE, d_scale = torch.empty_like(z_BE), torch.zeros_like(t_RE), torch.zeros_like(scale)
        for rows in ctx.blocks:
            if cached:
                logits = cached[0]
            else:
                logits, _ = _block_logits(z_BE, t_RE, scale, ctx.duplicates, rows=rows, first=ctx.first)
            # The gradient of log-sum-exp is the softmax; masked logits of -inf get exactly 0.
            softmax = (logits - row_max_B[rows, None]).sub_(row_log_B[rows, None]).exp_()
            d_logits = softmax.mul_(d_row_B[rows, None])
            d_logits += (logits - column_max_R).sub_(column_log_R).exp_().mul_(d_column_R)
            d_logits.diagonal(ctx.first + rows.start).sub_(d_row_B[rows] + d_column_B[rows])
            d_sim_z = d_logits @ t_RE
            dz_BE[rows] = scale * d_sim_z
            # The sum of d_logits times cosines, without the block of cosines: z . (d_logits t).
            d_scale += (d_sim_z * z_BE[rows]).sum()
            dt_RE += scale * (d_logits.T @ z_BE[rows])
        return dz_BE, dt_RE, d_scale, None, None, None


def _block_logits(
    z_BE: Tensor, t_RE: Tensor, scale: Tensor, duplicates: DuplicateFilter, *, rows: slice, first: int
) -> tuple[Tensor, Tensor | None]:
    """Return the masked logits [rows, R] of some of this process's rows, and their mask."""
    logits = scale * (z_BE[rows] @ t_RE.T)
    mask = duplicates.mask(slice(first + rows.start, first + rows.stop))
    return (logits if mask is None else logits.masked_fill_(mask, -math.inf)), mask
