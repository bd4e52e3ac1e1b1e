"""Layouts: which rows of a video's tokens come from which images, known before anything is encoded.

A strategy describes itself as a layout, in blocks of rows. Plans read the lengths of the blocks; `aggregate` fills
them. No torch is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from foveate.core.errors import UserError
from foveate.vision.tiling import Grid
from foveate.vision.video.collages import TowerImage

Operator = Literal[
    "concat",
    "spatial_1d_max_pool",
    "spatial_1d_avg_pool",
    "spatial_2d_max_pool",
    "spatial_2d_avg_pool",
    "spatial_temporal_pool",
    "temporal_global_pool",
    "grid_1x2",
]
"""The official operators, and `grid_1x2`: pairs of neighbors within a row, which differ on odd grids only."""
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Reduction = Literal["max", "avg"]

_TEMPORAL_BINS = Grid(12, 12), 16  # rows and columns, bins of time: constants of the official spatial_temporal_pool


class TokenPool(NamedTuple):
    """How the tokens of one image become fewer.

    Attributes:
        kind: "none"; "pairs" of the flattened axis; "row_pairs" within rows; "squares" of 2 x 2; "adaptive" to `grid`;
            "select" by `indices`. Where a count is odd, the last one is dropped.
    """

    kind: Literal["none", "pairs", "row_pairs", "squares", "adaptive", "select"] = "none"
    reduction: Reduction = "avg"
    grid: Grid = Grid(1, 1)
    indices: tuple[int, ...] = ()

    def count_rows(self, image_tokens: int) -> int:
        """Count the tokens that remain.

        Raises:
            UserError: the tokens are no square grid where one is needed, or too few for the operator.
        """
        if self.kind == "none":
            return image_tokens
        if self.kind == "select":
            return len(self.indices)
        if self.kind == "pairs":
            rows = image_tokens // 2
        else:
            side = grid_side(image_tokens)
            halves = {"row_pairs": side * (side // 2), "squares": (side // 2) ** 2}
            rows = halves.get(self.kind, math.prod(self.grid))
        if not rows:
            raise UserError(
                f"image tokens: too few to pool by two (got {image_tokens}); expected a grid of at least 2 x 2"
            )
        return rows

    def find_grid(self, image_tokens: int) -> Grid | None:
        """Return rows and columns of the tokens that remain; None where they are no grid."""
        if self.kind == "select":
            return None
        side = grid_side(image_tokens)
        # The official pool runs over the flattened tokens.
        if self.kind == "pairs" and side % 2:
            # Pairs then cross the ends of rows.
            return None
        if self.kind in ("pairs", "row_pairs"):
            return Grid(side, side // 2)
        return {"none": Grid(side, side), "squares": Grid(side // 2, side // 2)}.get(self.kind, self.grid)


def grid_side(image_tokens: int) -> int:
    """Return the side of a square grid of tokens; raise UserError if they are none."""
    side = math.isqrt(image_tokens)
    if not image_tokens or side * side != image_tokens:
        raise UserError(f"image tokens: no square grid (got {image_tokens}); expected a square such as 576 = 24 x 24")
    return side


def operator_pool(operator: Operator) -> tuple[TokenPool, int]:
    """Split an official operator into its pool of one image and its bins of time (0: frame after frame)."""
    pools: dict[Operator, tuple[TokenPool, int]] = {
        "concat": (TokenPool(), 0),
        "spatial_1d_max_pool": (TokenPool("pairs", "max"), 0),
        "spatial_1d_avg_pool": (TokenPool("pairs"), 0),
        "spatial_2d_max_pool": (TokenPool("squares", "max"), 0),
        "spatial_2d_avg_pool": (TokenPool("squares"), 0),
        # A mean over a box is a mean over time of means over space: frames need not wait for one another.
        "spatial_temporal_pool": (TokenPool("adaptive", grid=_TEMPORAL_BINS[0]), _TEMPORAL_BINS[1]),
        "temporal_global_pool": (TokenPool(), 1),
        "grid_1x2": (TokenPool("row_pairs", "max"), 0),
    }
    return pools[operator]


class RowBlock(NamedTuple):
    """Consecutive rows of the result.

    Attributes:
        path: name under which the rows are counted.
        images: positions in `Layout.images`, in the order of the rows; one comes as often as it repeats.
        bins: of time over which the pooled images are averaged; 0: image after image.
    """

    path: str
    images: tuple[int, ...]
    pool: TokenPool = TokenPool()
    bins: int = 0

    def bin_ranges(self) -> list[range]:
        """List the positions in `images` of each bin; bins overlap where they do not divide the images."""
        count = len(self.images)
        # Floor and ceiling, as in PyTorch's adaptive pooling.
        return [range(index * count // self.bins, -(-(index + 1) * count // self.bins)) for index in range(self.bins)]


@dataclass(frozen=True)
class Layout:
    """Images to encode, in this order, and the rows that come from them.

    Attributes:
        image_tokens: N, tokens of an encoded image.
        warnings: what a user should know about the settings on this clip.
    """

    image_tokens: int
    images: tuple[TowerImage, ...]
    blocks: tuple[RowBlock, ...]
    warnings: tuple[str, ...] = ()

    @cached_property
    def block_rows(self) -> tuple[int, ...]:
        """Rows of each block."""
        return tuple(
            block.pool.count_rows(self.image_tokens) * (block.bins or len(block.images)) if block.images else 0
            for block in self.blocks
        )

    @property
    def num_tokens(self) -> int:
        """L, rows of the result."""
        return sum(self.block_rows)

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the sampled frames that are read, in the order of time."""
        return tuple(sorted({frame for image in self.images for frame in image.frames}))

    def find_grids(self) -> dict[str, Grid]:
        """Return rows and columns of the tokens of an image in each path that keeps a grid."""
        grids = {block.path: block.pool.find_grid(self.image_tokens) for block in self.blocks if block.images}
        return {path: grid for path, grid in grids.items() if grid is not None}

    def count_tokens(self) -> dict[str, int]:
        """Count the rows of each path."""
        counts: dict[str, int] = {}
        for block, rows in zip(self.blocks, self.block_rows, strict=True):
            counts[block.path] = counts.get(block.path, 0) + rows
        return counts


@dataclass(frozen=True)
class NativeLayout(Layout):
    """The frames of a model's own video input, and the rows that its processor made of them."""

    rows: int = 0

    @cached_property
    def block_rows(self) -> tuple[int, ...]:
        """All rows: the processor may merge frames, and write texts between them."""
        return (self.rows,)

    def find_grids(self) -> dict[str, Grid]:
        """Return none: the processor decides."""
        return {}
