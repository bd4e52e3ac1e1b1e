"""Shared by the softmax and sigmoid losses: precision, blocks of rows, duplicate phrases, regions of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.training.distributed import all_sum, gather_ragged_with_grad, rows_before, sum_with_grad

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
    """
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
        # The diagonal holds the positives: each phrase is a duplicate of itself.
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
        raise UserError(
            f"normalize 'fixed': expected M, the maximum of regions per image, and N, the images of the batch, both at "
            f"least 1 (got {M} and {N})"
        )
    return M * N
