"""One feature map of an image at any resolution: its tiles side by side, and its overview brought to their size.

Ferret-v2 reads regions from the sum of the two, so that a region vector has the tiles' detail and the overview's
context; where the encoders differ, the sum is taken behind their projectors. The functions do not care which they get.

Sources: Ferret-v2 (arXiv 2404.07973), section 3.2; apple/ml-ferret, ferretui, `prepare_inputs_labels_for_multimodal`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.records.boxes import Floats
from foveate.vision.canvas import canvas_to_image, image_to_canvas
from foveate.vision.regions import RegionBatch
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan, unpad_patches

Interpolation = Literal["nearest", "bilinear"]


def merge_tiles(tiles_NLC: Tensor, plan: TilePlan, grid: tuple[int, int]) -> Tensor:
    """Lay the tokens of tiles side by side as one map [C, H, W].

    Args:
        tiles_NLC: of the tiles alone, in the order of their plan. grid: rows and columns of a tile's tokens.
    """
    # [tile row, tile column, y, x, C] -> [C, tile row, y, tile column, x]: a line of the map runs through all tiles
    # of a row.
    map_C = tiles_NLC.unflatten(1, grid).unflatten(0, plan.grid).permute(4, 0, 2, 1, 3)
    return map_C.flatten(3, 4).flatten(1, 2)


def resize_overview(
    overview_CHW: Tensor, plan: TilePlan, size: tuple[int, int], *, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Bring the map of an overview to the tiles' size, so that each cell shows the same part of the image.

    Where both are stretched and the size is a multiple, nearest repeats each cell. Canvases that are padded where the
    overview is stretched, as LLaVA-NeXT's, are followed through the image.

    Args:
        size: rows and columns of the merged tiles.
    """
    choose(interpolation, ("nearest", "bilinear"), "interpolation")
    sides, cells = np.array(plan.canvas[::-1]), np.array(size[::-1])
    # Rows and columns map independently, so one diagonal of cell centers carries both.
    diagonal_K2 = (np.arange(max(size))[:, None] + 0.5) / cells * sides
    seen_K2 = image_to_canvas(canvas_to_image(diagonal_K2, plan), plan, overview=True) / plan.tile
    rows_YH, columns_XW = (
        _weights(seen_K2[:count, axis], length, interpolation).to(overview_CHW)
        for axis, count, length in ((1, size[0], overview_CHW.shape[1]), (0, size[1], overview_CHW.shape[2]))
    )
    return rows_YH @ overview_CHW @ columns_XW.T


def _weights(position_K: Floats, length: int, interpolation: str) -> Tensor:
    """Return what each of `length` cells contributes [K, length] to positions in [0, 1]; those beyond take the edge."""
    # A rounding error must not move a position over the edge of a cell.
    at_K = torch.from_numpy(np.round(position_K * length, 9))
    if interpolation == "nearest":
        return torch.nn.functional.one_hot(at_K.floor().long().clamp(0, length - 1), length)
    # The value of a cell belongs to its center, half a cell past its edge.
    at_K = (at_K - 0.5).clamp(0, length - 1)
    return (1 - (at_K[:, None] - torch.arange(length)).abs()).clamp(min=0)


def fuse_views(
    views_VLC: Tensor, plan: TilePlan, grid: tuple[int, int], *, interpolation: Interpolation = "nearest"
) -> Tensor:
    """Return the map [C, H, W] that regions of an image are read from: merged tiles plus resized overview.

    An image with tiles or an overview alone gives that.

    Args:
        views_VLC: tokens of all views in the order of their plan, of one width. grid: rows and columns of a view.

    Raises:
        UserError: there are more or fewer views than the plan has, or of another grid.
    """
    if views_VLC.shape[:2] != (len(plan.views), grid[0] * grid[1]):
        raise UserError(
            f"views: shape {tuple(views_VLC.shape)}; expected [{len(plan.views)}, {grid[0] * grid[1]}, C], the "
            f"{grid[0]} x {grid[1]} tokens of each planned view"
        )
    tiles = [number for number, view in enumerate(plan.views) if view != OVERVIEW]
    overview_CHW = None
    if OVERVIEW in plan.views:
        overview_CHW = views_VLC[plan.views.index(OVERVIEW)].T.unflatten(1, grid)
    if not tiles:
        assert overview_CHW is not None, "a plan has views"
        return overview_CHW
    # Plans put the overview before or after all tiles, so the tiles are one slice and need no copy.
    merged_CHW = merge_tiles(views_VLC[tiles[0] : tiles[-1] + 1], plan, grid)
    if overview_CHW is None:
        return merged_CHW
    return merged_CHW + resize_overview(
        overview_CHW, plan, (merged_CHW.shape[1], merged_CHW.shape[2]), interpolation=interpolation
    )


def order_tokens(
    views_VLE: Tensor, plan: TilePlan, grid: tuple[int, int], *, newline_E: Tensor | None = None, unpad: bool = False
) -> Tensor:
    """Return what the language model reads of an image [T, E]: the overview, then the merged tiles row by row.

    Row by row over the whole map, not tile after tile.

    Args:
        newline_E: stands behind each row of the merged tiles. unpad: leave out rows or columns of padding alone.
    """
    tiles = [number for number, view in enumerate(plan.views) if view != OVERVIEW]
    parts = [views_VLE[plan.views.index(OVERVIEW)]] if OVERVIEW in plan.views else []
    if tiles:
        merged_EHW = merge_tiles(views_VLE[tiles[0] : tiles[-1] + 1], plan, grid)
        if unpad:
            whole = ImageSize(merged_EHW.shape[1], merged_EHW.shape[2])
            visible = unpad_patches(plan.size, whole)
            # `unpad_patches` assumes centered padding, half of it on each side.
            top, left = (whole.height - visible.height) // 2, (whole.width - visible.width) // 2
            merged_EHW = merged_EHW[:, top : top + visible.height, left : left + visible.width]
        if newline_E is not None:
            column_EH1 = newline_E[:, None, None].expand(-1, merged_EHW.shape[1], 1)
            merged_EHW = torch.cat([merged_EHW, column_EH1.to(merged_EHW)], dim=2)
        parts.append(merged_EHW.flatten(1).T)
    return torch.cat(parts)


def order_rows(views_VTE: Tensor, cell_V2: Tensor) -> Tensor:
    """Order the tokens of each image's tiles row by row over all of them, as `order_tokens` does, in their views.

    Laid end to end, the views then are the merged map; each of them alone is no part of the image any more.

    Args:
        views_VTE: square grids of tokens, of whole images.
        cell_V2: row and column of each view, as of `TilePlan.views`.
    """
    count, length, width = views_VTE.shape
    side = round(length**0.5)
    # An overview, or the first tile of an image, begins a new map.
    segment_V = ((cell_V2 == 0) | (cell_V2 == 1)).all(dim=1).cumsum(0)
    y_T, x_T = (torch.arange(length, device=cell_V2.device) // side, torch.arange(length, device=cell_V2.device) % side)
    row_VT, column_VT = cell_V2[:, :1] * side + y_T, cell_V2[:, 1:] * side + x_T
    extent = int(torch.stack([row_VT, column_VT]).max()) + 1 if count else 1
    # `extent` exceeds every row and column, so that a single number sorts by image, row and column.
    key_VT = (segment_V[:, None] * extent + row_VT) * extent + column_VT
    return views_VTE.flatten(0, 1)[key_VT.flatten().argsort()].view(count, length, width)


def move_to_canvas(regions: RegionBatch, plan: TilePlan) -> RegionBatch:
    """Map regions in [0, 1] of an image to [0, 1] of its fused map: padding of the canvas is left aside."""
    whole = plan.views == (OVERVIEW,)
    corners_22 = np.array([(0, 0), plan.size[::-1]])
    canvas = (plan.tile, plan.tile) if whole else plan.canvas[::-1]
    # Scale and offset of each axis: two corners determine them.
    low_2, high_2 = torch.from_numpy(image_to_canvas(corners_22, plan, overview=whole) / np.array(canvas))
    points_RN2 = low_2 + regions.points_RN2 * (high_2 - low_2)
    boxes_R4 = low_2.repeat(2) + regions.boxes_R4 * (high_2 - low_2).repeat(2)
    return regions._replace(points_RN2=points_RN2.to(regions.points_RN2), boxes_R4=boxes_R4.to(regions.boxes_R4))
