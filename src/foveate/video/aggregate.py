"""Aggregation of frames: from the tokens of encoded images to those that the language model reads.

Images come one by one, each is pooled for every block that reads it and then forgotten: nothing of the size of all
tokens of all frames exists. A tensor of all frames goes the same way, so that both give equal bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError
from foveate.video.layout import Layout, TokenPool, grid_side
from foveate.video.strategies import SlowStrategy, Strategy


def pool_tokens(tokens_ND: Tensor, pool: TokenPool) -> Tensor:
    """Pool the tokens of one image, row by row, to [K, D]; the input is left as it is."""
    if pool.kind == "none":
        return tokens_ND
    if pool.kind == "select":
        return tokens_ND[list(pool.indices)]
    if pool.kind == "pairs":
        # The official operators floor: where the count is odd, the last token is dropped.
        end = len(tokens_ND) // 2 * 2
        return _reduce(tokens_ND[0:end:2], tokens_ND[1:end:2], pool)
    side = grid_side(len(tokens_ND))
    if pool.kind == "adaptive":
        adaptive = F.adaptive_avg_pool2d if pool.reduction == "avg" else F.adaptive_max_pool2d
        return _flatten_map(adaptive(_make_map(tokens_ND, side), pool.grid))
    end = side // 2 * 2
    map_HWD = tokens_ND.unflatten(0, (side, side))
    if pool.kind == "squares":
        if pool.reduction == "avg":
            # One mean of four: a mean of means would round twice in 16 bits.
            return _flatten_map(F.avg_pool2d(_make_map(tokens_ND, side), 2))
        map_HWD = torch.maximum(map_HWD[0:end:2], map_HWD[1:end:2])
    return _reduce(map_HWD[:, 0:end:2], map_HWD[:, 1:end:2], pool).flatten(0, 1)


def _make_map(tokens_ND: Tensor, side: int) -> Tensor:
    """View tokens as a map [1, D, side, side] whose channels are innermost.

    Kernels of channels-last maps are 40 times as fast as those of a contiguous copy. The batch axis comes before the
    permutation: an axis that is added behind it gets a stride by which PyTorch no longer sees channels last.
    """
    return tokens_ND.unflatten(0, (1, side, side)).permute(0, 3, 1, 2)


def _flatten_map(map_1DHW: Tensor) -> Tensor:
    """Flatten a map [1, D, H, W] to tokens, row by row."""
    return map_1DHW[0].permute(1, 2, 0).flatten(0, 1)


def _reduce(first: Tensor, second: Tensor, pool: TokenPool) -> Tensor:
    """Reduce two tensors elementwise: slices and one operation, where a reduction over a new axis is slower."""
    if pool.reduction == "max":
        return torch.maximum(first, second)
    # The sum of two float16 may be infinite.
    wide = torch.promote_types(first.dtype, torch.float32)
    if first.dtype == wide:
        return torch.lerp(first, second, 0.5)
    return torch.lerp(first.to(wide), second.to(wide), 0.5).to(first.dtype)


class _Write(NamedTuple):
    """What an image contributes to a block: rows from `start`, or its share in bins of time."""

    pool: TokenPool
    block: int
    start: int
    bins: tuple[int, ...] = ()


class FrameAggregator:
    """Fill the rows of a layout from its images, one by one.

    >>> from foveate.video.strategies import SlowFast
    >>> layout = SlowFast().layout(num_frames=50, image_tokens=576)
    >>> aggregator = FrameAggregator(layout)
    >>> for image in layout.images:
    ...     aggregator.add(torch.zeros(576, 8))
    >>> aggregator.finish().shape
    torch.Size([3680, 8])
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._writes = _plan_writes(layout)
        # Bins may overlap, so an image counts once for each bin that it enters.
        self._pending = {block: sum(map(len, entry.bin_ranges())) for block, entry in enumerate(layout.blocks)}
        self._sums: dict[int, Tensor] = {}
        self._rows_LD: Tensor | None = None
        self._num_added = 0
        for text in layout.warnings:
            warnings.warn(text, stacklevel=2)

    def add(self, tokens_ND: Tensor) -> None:
        """Add the tokens [N, D] of the next image of the layout.

        Raises:
            UserError: no image is left, or the tokens have another shape or type than the first ones.
        """
        self._check(tokens_ND)
        if self._rows_LD is None:
            self._rows_LD = tokens_ND.new_empty(self.layout.num_tokens, tokens_ND.shape[1])
        pooled: dict[TokenPool, Tensor] = {}
        for write in self._writes[self._num_added]:
            # Blocks may share a pool, and a frame that repeats is pooled once.
            if write.pool not in pooled:
                pooled[write.pool] = pool_tokens(tokens_ND, write.pool)
            rows_KD = pooled[write.pool]
            if write.bins:
                self._accumulate(write, rows_KD)
            else:
                self._put(write.start, rows_KD)
        self._num_added += 1

    def finish(self) -> Tensor:
        """Return all rows [L, D]; raise UserError while images are missing."""
        if self._rows_LD is None or self._num_added < len(self.layout.images):
            raise UserError(f"frames: {self._num_added} images added; expected {len(self.layout.images)}")
        return self._rows_LD

    def _check(self, tokens_ND: Tensor) -> None:
        if self._num_added == len(self.layout.images):
            raise UserError(
                f"frames: more images than expected (got {self._num_added + 1}); expected {self._num_added}"
            )
        rows_LD = self._rows_LD
        width = tokens_ND.shape[-1] if rows_LD is None else rows_LD.shape[1]
        dtype = tokens_ND.dtype if rows_LD is None else rows_LD.dtype
        if tokens_ND.shape != (self.layout.image_tokens, width) or tokens_ND.dtype != dtype:
            raise UserError(
                f"frames: image {self._num_added} has tokens {tuple(tokens_ND.shape)} of {tokens_ND.dtype}; expected "
                f"{(self.layout.image_tokens, width)} of {dtype}"
            )
        if not dtype.is_floating_point:
            raise UserError(f"frames: tokens of {dtype}; expected a type of floating point")

    def _put(self, start: int, rows_KD: Tensor) -> None:
        assert self._rows_LD is not None
        self._rows_LD[start : start + len(rows_KD)] = rows_KD

    def _accumulate(self, write: _Write, rows_KD: Tensor) -> None:
        """Add pooled rows to the means of bins; write them once the last image of the block is there."""
        ranges = self.layout.blocks[write.block].bin_ranges()
        if write.block not in self._sums:
            # Sums in 16 bits would lose what later frames add.
            wide = torch.promote_types(rows_KD.dtype, torch.float32)
            shape = (len(ranges), *rows_KD.shape)
            self._sums[write.block] = torch.zeros(shape, dtype=wide, device=rows_KD.device)
        sums_BKD = self._sums[write.block]
        for index in write.bins:
            sums_BKD[index] += rows_KD
        self._pending[write.block] -= len(write.bins)
        if not self._pending[write.block]:
            counts_B = torch.tensor([len(positions) for positions in ranges], device=rows_KD.device)
            means_BKD = self._sums.pop(write.block) / counts_B[:, None, None]
            self._put(write.start, means_BKD.flatten(0, 1).to(rows_KD.dtype))


def _plan_writes(layout: Layout) -> list[list[_Write]]:
    """List for each image of a layout what it contributes."""
    writes: list[list[_Write]] = [[] for _ in layout.images]
    start = 0
    for number, (block, rows) in enumerate(zip(layout.blocks, layout.block_rows, strict=True)):
        ranges = block.bin_ranges()
        # A clip of fewer frames than slow ones repeats some: an image may come several times in a block.
        each = rows // len(block.images) if block.images else 0
        for position, image in enumerate(block.images):
            if ranges:
                bins = tuple(index for index, positions in enumerate(ranges) if position in positions)
                writes[image].append(_Write(block.pool, number, start, bins))
            elif each:
                writes[image].append(_Write(block.pool, number, start + position * each))
        start += rows
    return writes


def aggregate_frames(
    frames: Tensor | Iterable[Tensor],
    how: Strategy,
    *,
    num_frames: int | None = None,
    slow_indices: Sequence[int] | None = None,
) -> Tensor:
    """Aggregate the tokens of sampled frames [T, N, D], or of frames [N, D] one by one, to [L, D].

    Gradients flow; the input is left as it is and may have any strides.

    Source: `prepare_slowfast` and `temporal_aggregation` of the official code.

    Args:
        frames: projected tokens of all frames in the order of time. Those that the strategy does not read are skipped.
        num_frames: T, where frames come one by one.
        slow_indices: of the slow frames, as `choose_frames` returns them; evenly spread without.

    Raises:
        UserError: frames of another shape or count, a grid that the strategy cannot pool, or a strategy that reads
            collages (add the tokens of `how.layout(...).images` to a `FrameAggregator` then).

    >>> from foveate.video.strategies import SlowFast
    >>> aggregate_frames(torch.zeros(50, 576, 8), SlowFast()).shape
    torch.Size([3680, 8])
    >>> aggregate_frames((torch.zeros(576, 8) for _ in range(50)), SlowFast(), num_frames=50).shape
    torch.Size([3680, 8])
    """
    if isinstance(frames, Tensor):
        if frames.dim() != 3 or 0 in frames.shape:
            raise UserError(f"frames: shape {tuple(frames.shape)}; expected [T, N, D]")
        num_frames = len(frames)
    elif num_frames is None:
        raise UserError("num_frames: missing; frames that come one by one need their number")
    if isinstance(how, SlowStrategy) and how.choose != "even" and slow_indices is None:
        raise UserError(f"slow_indices: missing; choose '{how.choose}' needs those of `choose_frames`")
    aggregator: FrameAggregator | None = None
    readers: set[int] = set()
    count = 0
    for count, tokens_ND in enumerate(frames, 1):
        if aggregator is None:
            # Only the first frame tells how many tokens a frame has.
            layout = how.layout(num_frames, tokens_ND.shape[0], slow_indices=slow_indices)
            if not all(image.is_frame for image in layout.images):
                raise UserError(f"how: strategy '{how.kind}' reads collages of frames, which must be encoded for it")
            readers = {image.frames[0] for image in layout.images}
            aggregator = FrameAggregator(layout)
        if count - 1 in readers:
            aggregator.add(tokens_ND)
    if aggregator is None or count != num_frames:
        raise UserError(f"frames: {count} frames; expected num_frames = {num_frames}")
    return aggregator.finish()
