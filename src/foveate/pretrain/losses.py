"""The losses of CLIP, SigLIP and CLOC on the batch of all processes.

Each process compares its own images and regions with the texts of all processes: texts are gathered with gradient,
column sums are joined as one number per column, so images and regions are never gathered and each process computes
1/world of the matrices. Every process returns the loss of the whole batch. One process is the case world = 1 of the
same code.

Shapes: B images of this process, N images of all; R regions of all (ragged, flat), E width of the joint embedding.

Source: Contrastive Localized Language-Image Pre-Training (arXiv 2410.02746 v2), equations 1 to 4; Sigmoid Loss for
Language Image Pre-Training (arXiv 2303.15343), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foveate.core.errors import UserError, choose
from foveate.training.distributed import (
    all_max,
    all_sum,
    gather_ragged_with_grad,
    gather_with_grad,
    rows_before,
    sum_with_grad,
    world,
)

# The paper's rule is "embedding". With a small vocabulary it also drops different phrases that have drifted above the
# threshold, and with them the term that would push them apart; "exact" drops equal strings only.
FILTERS = ("embedding", "exact", "none")
NORMALIZATIONS = ("regions", "fixed")


def widen(x: Tensor) -> Tensor:
    """Convert to float32; float64 stays."""
    # Half-precision logits overflow or round at a logit scale of 100.
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> Any:
    """Return a context that switches autocast off on the device of `x`."""
    # Autocast would turn the products of widened tensors back to half precision.
    return torch.autocast(device_type=x.device.type, enabled=False)


def scalar_like(value: Tensor | float, like: Tensor) -> Tensor:
    """Return a logit scale or bias with the dtype and device of `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def row_blocks(rows: int, *, row_chunk: int | None) -> list[slice]:
    """Split rows into blocks of at most `row_chunk`; None gives one block.

    Raises:
        UserError: for `row_chunk` below 1.
    """
    if row_chunk is not None and row_chunk < 1:
        raise UserError(f"row_chunk: expected an integer of at least 1, or none for the whole matrix (got {row_chunk})")
    size = max(row_chunk or rows, 1)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def duplicate_mask(t_RE: Tensor, *, filter: str, threshold: float = 0.9, phrase_ids: Tensor | None = None) -> Tensor:
    """Mark the negatives [R, R] to leave out because both phrases are the same; symmetric, diagonal False.

    Args:
        t_RE: phrase embeddings of any length; no gradient flows through the mask.
        filter: "embedding" marks pairs whose cosine is strictly above `threshold` (the paper's rule), "exact" pairs
            with equal `phrase_ids`, "none" no pair.
        threshold: cosine in [-1, 1]; 1.01 switches the embedding filter off.
        phrase_ids: integer identity of each region's phrase [R], required by "exact".

    Raises:
        UserError: for an unknown filter, or "exact" without `phrase_ids`.

    Example:
        >>> phrases = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # the first two are the same phrase
        >>> duplicate_mask(phrases, filter="embedding").int().tolist()
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    # A constant of the step (section 3.1): it reads the current text embeddings and sends them no gradient.
    unit_RE = F.normalize(widen(t_RE.detach()), dim=-1)
    duplicates = DuplicateFilter.of(unit_RE, filter=filter, threshold=threshold, phrase_ids=phrase_ids)
    mask_RR = duplicates.mask(slice(0, len(t_RE)))
    if mask_RR is None:
        return torch.zeros(len(t_RE), len(t_RE), dtype=torch.bool, device=t_RE.device)
    # A cosine within rounding of the threshold may fall on both sides of it.
    return mask_RR | mask_RR.T


@dataclass(frozen=True)
class DuplicateFilter:
    """Masks blocks of rows of the region matrix.

    Attributes:
        keys: unit phrase embeddings [R, E] or phrase identities [R] of all processes; None masks nothing.
        threshold: cosine above which two embeddings are duplicates; None compares keys for equality.
    """

    keys: Tensor | None = None
    threshold: float | None = None

    @classmethod
    def of(cls, unit_RE: Tensor, *, filter: str, threshold: float, phrase_ids: Tensor | None) -> DuplicateFilter:
        """Build the filter of this name over the phrases of all processes."""
        choose(filter, FILTERS, "duplicate filter")
        if filter == "none":
            return cls()
        if filter == "embedding":
            # Detached, because the mask only decides which negatives count, and carries no gradient.
            return cls(unit_RE.detach(), threshold)
        if phrase_ids is None:
            raise UserError("duplicate filter 'exact': expected phrase_ids, the identities of the phrases (got none)")
        return cls(phrase_ids.to(unit_RE.device))

    def mask(self, rows: slice) -> Tensor | None:
        """Return rows `rows` of the mask [rows, R], or None where nothing is masked; positives stay in."""
        if self.keys is None:
            return None
        if self.threshold is None:
            mask = self.keys[rows, None] == self.keys[None, :]
        else:
            with without_autocast(self.keys):
                mask = self.keys[rows] @ self.keys.T > self.threshold
        index = torch.arange(rows.start, rows.stop, device=mask.device)
        mask[index - rows.start, index] = False
        return mask


@dataclass(frozen=True)
class RegionLoss:
    """The region-text loss of the batch of all processes.

    Attributes:
        loss: mean of both directions (equation 2), the one to train on.
        r2t: region to text. t2r: text to region. Scalars, divided according to `normalize`.
        masked_fraction: share of the R (R - 1) negatives that the filter left out, in [0, 1]; without gradient.
    """

    loss: Tensor
    r2t: Tensor
    t2r: Tensor
    masked_fraction: Tensor

    @classmethod
    def from_parts(cls, parts_2: Tensor, masked: Tensor, *, total: int) -> RegionLoss:
        """Sum this process's parts (region to text, text to region) and masked entries over processes."""
        r2t, t2r = sum_with_grad(parts_2).unbind(0)
        # `max` avoids 0 / 0: a single region has no negatives.
        return cls((r2t + t2r) / 2, r2t, t2r, all_sum(masked) / max(total * (total - 1), 1))


@dataclass(frozen=True)
class RegionRows:
    """This process's regions against the phrases of all processes.

    Attributes:
        z_BE, t_RE: unit length; B regions of this process, R phrases of all.
        scale, bias: of the logits; no bias in the softmax loss.
        duplicates: pairs that are left out. first: column of the first row's positive.
        total: R. divisor: of the loss.
        zero: exactly 0, with (zero) gradients to all inputs.
    """

    z_BE: Tensor
    t_RE: Tensor
    scale: Tensor
    bias: Tensor | None
    duplicates: DuplicateFilter
    first: int
    total: int
    divisor: int
    zero: Tensor


def gather_regions(
    z_BE: Tensor,
    t_BE: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None,
    filter: str,
    threshold: float,
    phrase_ids: Tensor | None,
    normalize: str,
    M: int | None,
    N: int | None,
) -> RegionRows:
    """Normalize this process's regions and gather the phrases of all; call it without autocast."""
    choose(filter, FILTERS, "duplicate filter")
    first, total = rows_before(z_BE)
    divisor = region_divisor(total, normalize=normalize, M=M, N=N)
    if filter == "exact" and phrase_ids is not None:
        phrase_ids = gather_ragged_with_grad(phrase_ids[:, None])[:, 0]
    z_BE, t_BE = widen(z_BE), widen(t_BE)
    scale = scalar_like(logit_scale, z_BE)
    bias = None if logit_bias is None else scalar_like(logit_bias, z_BE)
    # Connects every input with the loss, so that a process without regions joins every collective of the backward
    # pass and DDP finds a gradient for every parameter. Sums of empty slices are exact zeros, whatever the values.
    zero = z_BE[:0].sum() + t_BE[:0].sum() + 0.0 * (scale.sum() + (0.0 if bias is None else bias.sum()))
    t_RE = gather_ragged_with_grad(F.normalize(t_BE, dim=-1))
    duplicates = DuplicateFilter.of(t_RE, filter=filter, threshold=threshold, phrase_ids=phrase_ids)
    z_BE = F.normalize(z_BE, dim=-1)
    return RegionRows(z_BE, t_RE, scale, bias, duplicates, first, total, divisor, zero)


def region_divisor(total: int, *, normalize: str, M: int | None, N: int | None) -> int:
    """Return what sums over regions are divided by: R, or M N as the paper prints it.

    Raises:
        UserError: for an unknown `normalize`, or "fixed" without M and N.
    """
    choose(normalize, NORMALIZATIONS, "normalization of the region losses")
    if normalize == "regions":
        return max(total, 1)
    if M is None or N is None or M < 1 or N < 1:
        what = "M, the maximum of regions per image, and N, the images of the batch, both at least 1"
        raise UserError(f"normalize 'fixed': expected {what} (got {M} and {N})")
    return M * N


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

    Example:
        >>> vectors = torch.eye(4)
        >>> round(float(clip_loss(vectors, vectors, 0.0)), 3), round(float(clip_loss(vectors, vectors, 100.0)), 3)
        (1.386, 0.0)
    """
    # Compute in float32 at least: at a scale of 100, bfloat16 has steps of 0.5 between the largest logits.
    with without_autocast(image_BE):
        image_BE, text_NE = widen(image_BE), gather_with_grad(widen(text_BE))
        # Every process has as many images, so the first row is known without the collective that ragged regions need.
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

    Example:
        >>> regions = torch.eye(3, requires_grad=True)
        >>> phrases = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # the last two are duplicates
        >>> result = region_text_loss(regions, phrases, 10.0)
        >>> result.loss.backward()
        >>> round(float(result.masked_fraction), 3)  # 2 of 6 negatives
        0.333
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
        # Maximum and logarithm apart: at a scale of 100 their float32 sum would put 8e-6 of error into every softmax.
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
            # The positive's logit appears in both cross entropies with a minus sign.
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

    Example:
        >>> vectors = torch.eye(4)
        >>> round(float(sigmoid_loss(vectors, vectors, 10.0, -10.0)), 3)
        0.693
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

    Example:
        >>> vectors = torch.eye(4)
        >>> round(float(sigmoid_region_loss(vectors, vectors, 10.0, logit_bias=-10.0).loss), 3)
        0.693
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
        duplicates, row_chunk, first: see `foveate.pretrain.losses.cross_entropies`.
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

    Example:
        >>> boxes = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
        >>> round(float(grounding_loss(boxes, boxes + 0.1)), 3)
        0.01
    """
    _, total = rows_before(pred_B4)
    divisor = 4 * region_divisor(total, normalize=normalize, M=M, N=N)
    with without_autocast(pred_B4):
        # Equation 3: a plain squared error on the raw output. Clamped corners would have no gradient outside the image.
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
