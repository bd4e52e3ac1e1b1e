"""The losses of CLIP and CLOC as functions of the embeddings of the whole batch.

With several processes `foveate.pretrain.sharded` computes the same, each process the rows of its own images.

Source: Contrastive Localized Language-Image Pre-Training (arXiv 2410.02746 v2), equations 1 to 4. Shapes: N images
of the global batch, R regions drawn from them (ragged, flat), E the width of the joint embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.training.distributed import all_sum, logsumexp_over_ranks

FILTERS = ("embedding", "exact", "none")
NORMALIZATIONS = ("regions", "fixed")


@dataclass(frozen=True)
class RegionLoss:
    """What `region_text_loss` returns.

    Attributes:
        loss: mean of both directions (equation 2), the one to train on.
        r2t: region to text. t2r: text to region. Scalars, divided as `normalize` says.
        masked_fraction: share of the R (R - 1) negatives that the filter left out, in [0, 1]; without gradient.
        mask_RR: True where a negative was left out; None in the chunked form, which never builds it whole.
    """

    loss: Tensor
    r2t: Tensor
    t2r: Tensor
    masked_fraction: Tensor
    mask_RR: Tensor | None


def _wide(x: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: half-precision logits overflow or round at scale 100."""
    return x if x.dtype == torch.float64 else x.float()


def _no_autocast(x: Tensor) -> Any:
    return torch.autocast(device_type=x.device.type, enabled=False)


def _check_chunk(row_chunk: int | None) -> None:
    if row_chunk is not None and row_chunk < 1:
        raise UserError(f"row_chunk {row_chunk}: allowed are integers from 1, or none for the whole matrix")


def clip_loss(
    image_NE: Tensor, text_NE: Tensor, logit_scale: Tensor | float, *, row_chunk: int | None = None
) -> Tensor:
    """Symmetric image-text contrastive loss (equation 1), pairs on the diagonal.

    Args:
        image_NE: image embeddings of unit length; they are not normalized again.
        text_NE: text embeddings of unit length, row n belongs to image n.
        logit_scale: 1 / temperature, the exponential of the learned parameter.
        row_chunk: work on that many rows of the N x N matrix at a time; same loss, same gradient, less memory.

    Returns:
        A scalar in nats: 0 for one pair, ln N when all similarities are equal.

    Raises:
        UserError: for `row_chunk` below 1.
    """
    _check_chunk(row_chunk)
    with _no_autocast(image_NE):
        if row_chunk is not None and row_chunk < len(image_NE):
            image_NE, text_NE = _wide(image_NE), _wide(text_NE)
            scale = torch.as_tensor(logit_scale, dtype=image_NE.dtype, device=image_NE.device)
            row_N, column_N, diagonal_N, _ = block_terms(image_NE, text_NE, scale, row_chunk=row_chunk)
            return (row_N + column_N - 2 * diagonal_N).mean() / 2
        logits_NN = logit_scale * (_wide(image_NE) @ _wide(text_NE).T)
        labels_N = torch.arange(len(logits_NN), device=logits_NN.device)
        return (F.cross_entropy(logits_NN, labels_N) + F.cross_entropy(logits_NN.T, labels_N)) / 2


def duplicate_mask(t_RE: Tensor, *, filter: str, threshold: float = 0.9, phrases: Tensor | None = None) -> Tensor:
    """Which negatives are left out because both phrases say the same; symmetric, diagonal False, no gradient.

    Args:
        t_RE: phrase embeddings, of any length.
        filter: "embedding" leaves out pairs whose cosine is strictly above `threshold` (the paper's rule), "exact"
            pairs of equal `phrases`, "none" nothing.
        threshold: cosine in [-1, 1]; 1.01 switches the embedding filter off.
        phrases: integer identity of the phrase of each region [R], wanted by "exact".

    Raises:
        UserError: for an unknown filter, or "exact" without `phrases`.
    """
    unit_RE = F.normalize(_wide(t_RE.detach()), dim=-1)
    keys = _filter_keys(unit_RE, filter=filter, phrases=phrases)
    mask_RR = _block_mask(slice(0, len(t_RE)), keys, filter=filter, threshold=threshold, like=unit_RE)
    return mask_RR | mask_RR.T


def _filter_keys(unit_RE: Tensor, *, filter: str, phrases: Tensor | None) -> Tensor | None:
    choose(filter, FILTERS, "duplicate filter")
    if filter == "exact":
        if phrases is None:
            raise UserError("duplicate filter 'exact' needs the identities of the phrases (phrases=...)")
        return phrases.to(unit_RE.device)
    return unit_RE if filter == "embedding" else None


def _block_mask(rows: slice, keys: Tensor | None, *, filter: str, threshold: float, like: Tensor) -> Tensor:
    """Rows `rows` of the mask [rows, R]; the positive of each row stays in."""
    size = len(like)
    start, stop, _ = rows.indices(size)
    if keys is None:
        return torch.zeros(stop - start, size, dtype=torch.bool, device=like.device)
    if filter == "exact":
        mask = keys[rows, None] == keys[None, :]
    else:
        with _no_autocast(keys):
            mask = keys[rows] @ keys.T > threshold
    index = torch.arange(start, stop, device=like.device)
    mask[index - start, index] = False
    return mask


class _BlockTerms(torch.autograd.Function):
    """Row and column log-sum-exp and diagonal of masked logits, a block of rows at a time, in both passes.

    Memory is chunk x R instead of R x R: with 4 regions of 32,768 images the whole matrix has 1.7e10 entries. A
    single block is kept for the backward pass, several are computed again.

    Args:
        z_BE: the rows: all of them, or with option `shared` those of this rank. t_RE: all columns.
        keys: see `_filter_keys`. options: `row_chunk`, `filter`, `threshold`; `first`, column of the first row's
            positive; `shared`, whether other ranks have the other rows. The columns are then joined over ranks, in the
            backward pass their gradients too; d t_RE is of these rows only, as `gather_with_grad` wants it.
    """

    @staticmethod
    def forward(
        ctx: Any, z_BE: Tensor, t_RE: Tensor, scale: Tensor, keys: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size, first = len(z_BE), options["first"]
        row_B, diagonal_B = torch.empty_like(z_BE[:, 0]), torch.empty_like(z_BE[:, 0])
        column_R = torch.full_like(t_RE[:, 0], -math.inf)
        masked = torch.zeros((), dtype=torch.int64, device=z_BE.device)
        chunk = min(options["row_chunk"] or size, size)
        block: list[Tensor] = []
        for rows in _blocks(size, chunk):
            logits, mask = _block_logits(rows, z_BE, t_RE, scale, keys, options)
            row_B[rows] = logits.logsumexp(1)
            column_R = torch.logaddexp(column_R, logits.logsumexp(0))
            diagonal_B[rows] = logits.diagonal(first + rows.start)
            masked += mask.sum()
            block = [logits] if chunk == size else []
        if options["shared"]:
            column_R = logsumexp_over_ranks(column_R)
        ctx.save_for_backward(z_BE, t_RE, scale, row_B, column_R, *([] if keys is None else [keys]), *block)
        ctx.options, ctx.filtered, ctx.chunk = options, keys is not None, chunk
        ctx.mark_non_differentiable(masked)
        return row_B, column_R, diagonal_B, masked

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        d_row_B, d_column_R, d_diagonal_B, _ = grad_outputs
        z_BE, t_RE, scale, row_B, column_R, *rest = ctx.saved_tensors
        keys = rest.pop(0) if ctx.filtered else None
        if ctx.options["shared"]:
            d_column_R = all_sum(d_column_R)
        dz_BE, dt_RE, d_scale = torch.empty_like(z_BE), torch.zeros_like(t_RE), torch.zeros_like(scale)
        for rows in _blocks(len(z_BE), ctx.chunk):
            logits = rest[0] if rest else _block_logits(rows, z_BE, t_RE, scale, keys, ctx.options)[0]
            d_logits = (logits - row_B[rows, None]).exp() * d_row_B[rows, None]
            d_logits += (logits - column_R).exp() * d_column_R
            d_logits.diagonal(ctx.options["first"] + rows.start).add_(d_diagonal_B[rows])
            d_sim_z = d_logits @ t_RE
            dz_BE[rows] = scale * d_sim_z
            d_scale += (d_sim_z * z_BE[rows]).sum()
            dt_RE += scale * (d_logits.T @ z_BE[rows])
        return dz_BE, dt_RE, d_scale, None, None


def _blocks(size: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, size)) for start in range(0, size, max(chunk, 1))]


def _block_logits(
    rows: slice, z_BE: Tensor, t_RE: Tensor, scale: Tensor, keys: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Masked logits [rows, R] of some of z_BE's rows, and the mask."""
    placed = slice(options["first"] + rows.start, options["first"] + rows.stop)
    mask = _block_mask(placed, keys, filter=options["filter"], threshold=options["threshold"], like=t_RE)
    return (scale * (z_BE[rows] @ t_RE.T)).masked_fill(mask, -math.inf), mask


def block_terms(
    z_BE: Tensor,
    t_RE: Tensor,
    scale: Tensor,
    *,
    keys: Tensor | None = None,
    filter: str = "none",
    threshold: float = 1.0,
    row_chunk: int | None = None,
    first: int = 0,
    shared: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row log-sum-exp [B], column log-sum-exp [R], diagonal [B] and number of masked entries; see `_BlockTerms`."""
    options = {"filter": filter, "threshold": threshold, "row_chunk": row_chunk, "first": first, "shared": shared}
    return _BlockTerms.apply(z_BE, t_RE, scale, keys, options)


def region_text_loss(
    z_RE: Tensor,
    t_RE: Tensor,
    logit_scale: Tensor | float,
    *,
    filter: str = "embedding",
    threshold: float = 0.9,
    phrases: Tensor | None = None,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
    row_chunk: int | None = None,
) -> RegionLoss:
    """Symmetric region-text contrastive loss over all regions of the global batch (equation 2).

    The negatives of a region are all other drawn phrases, those of its own image too, except the duplicates that
    `duplicate_mask` names. Embeddings of any length go in; cosines are taken in at least float32.

    Args:
        z_RE: region embeddings. t_RE: phrase embeddings, row r belongs to region r.
        logit_scale: 1 / temperature.
        filter, threshold, phrases: see `duplicate_mask`.
        normalize: "regions" divides by R, "fixed" by M N as the paper prints it.
        M: most regions drawn per image, N: images of the global batch; both wanted by "fixed".
        row_chunk: work on that many rows of the R x R matrix at a time; same loss, same gradient, less memory.

    Returns:
        `RegionLoss`. Exactly 0 with zero gradients for R = 0, and 0 for R = 1.

    Raises:
        UserError: for unknown options, or "fixed" without M and N, or `row_chunk` below 1.
    """
    choose(filter, FILTERS, "duplicate filter")
    divisor = _divisor(len(z_RE), normalize=normalize, M=M, N=N)
    _check_chunk(row_chunk)
    with _no_autocast(z_RE):
        z_RE, t_RE = _wide(z_RE), _wide(t_RE)
        scale = torch.as_tensor(logit_scale, dtype=z_RE.dtype, device=z_RE.device)
        if len(z_RE) == 0:
            zero = z_RE.sum() + t_RE.sum() + (scale * 0.0).sum()
            empty = torch.zeros(0, 0, dtype=torch.bool, device=z_RE.device)
            mask_RR = None if row_chunk else empty
            return RegionLoss(zero, zero, zero, torch.zeros((), device=z_RE.device), mask_RR)
        z_RE, t_RE = F.normalize(z_RE, dim=-1), F.normalize(t_RE, dim=-1)
        if row_chunk is None:
            mask_RR = duplicate_mask(t_RE, filter=filter, threshold=threshold, phrases=phrases)
            logits_RR = (scale * (z_RE @ t_RE.T)).masked_fill(mask_RR, -math.inf)
            row_R, column_R, diagonal_R = logits_RR.logsumexp(1), logits_RR.logsumexp(0), logits_RR.diagonal()
            masked = mask_RR.sum()
        else:
            mask_RR = None
            keys = _filter_keys(t_RE.detach(), filter=filter, phrases=phrases)
            row_R, column_R, diagonal_R, masked = block_terms(
                z_RE, t_RE, scale, keys=keys, filter=filter, threshold=threshold, row_chunk=row_chunk
            )
        r2t, t2r = (row_R - diagonal_R).sum() / divisor, (column_R - diagonal_R).sum() / divisor
        masked_fraction = masked / max(len(z_RE) * (len(z_RE) - 1), 1)
    return RegionLoss((r2t + t2r) / 2, r2t, t2r, masked_fraction, mask_RR)


def _divisor(regions: int, *, normalize: str, M: int | None, N: int | None) -> int:
    choose(normalize, NORMALIZATIONS, "normalization of the region losses")
    if normalize == "regions":
        return max(regions, 1)
    if M is None or N is None or M < 1 or N < 1:
        raise UserError("normalize 'fixed' needs M, the most regions per image, and N, the images of the batch")
    return M * N


def grounding_loss(
    pred_R4: Tensor,
    target_R4: Tensor,
    *,
    normalize: str = "regions",
    M: int | None = None,
    N: int | None = None,
) -> Tensor:
    """Mean squared error over the four corner numbers of all drawn boxes (equation 3).

    Args:
        pred_R4: output of the box head, corners in [0, 1] of the model input, not clamped.
        target_R4: true corners (x1, y1, x2, y2) in [0, 1] of the model input.
        normalize: "regions" divides by 4 R, "fixed" by 4 M N.

    Returns:
        A scalar; exactly 0 with zero gradient for R = 0.
    """
    divisor = 4 * _divisor(len(pred_R4), normalize=normalize, M=M, N=N)
    with _no_autocast(pred_R4):
        return (_wide(pred_R4) - _wide(target_R4)).square().sum() / divisor


def labeled_fraction(counts_N: Tensor) -> Tensor:
    """Share of the images of the global batch that have at least one region, in [0, 1].

    Args:
        counts_N: number of drawn regions of each image.
    """
    wide = torch.float32 if counts_N.device.type == "mps" else torch.float64
    return (counts_N > 0).to(wide).mean() if len(counts_N) else torch.zeros((), dtype=torch.float64)


def total_loss(
    clip: Tensor,
    region: Tensor | float = 0.0,
    grounding: Tensor | float = 0.0,
    *,
    labeled_fraction: Tensor | float,
    lambda_scale: float = 1.0,
    grounding_weight: float = 1.0,
) -> Tensor:
    """clip + lambda (region + grounding_weight grounding), lambda = lambda_scale x labeled_fraction (equation 4).

    With no labeled image the total is the CLIP loss bit for bit, and the Prompter's gradients are zeros.
    """
    weight = lambda_scale * labeled_fraction
    regions = torch.as_tensor(weight * (region + grounding_weight * grounding), dtype=clip.dtype, device=clip.device)
    return clip + regions
