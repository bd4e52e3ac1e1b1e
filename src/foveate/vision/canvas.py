"""Pixels of an image's views, and exact maps between image, canvas and tile.

Points are (x, y) in pixels as float64 [P, 2]; a box is two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.core.errors import UserError, choose
from foveate.records.boxes import Floats, areas, as_boxes
from foveate.records.geometry import MIN_VISIBLE
from foveate.vision.preprocess import Preprocess
from foveate.vision.tiling import OVERVIEW, Fit, ImageSize, TilePlan


def mean_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return an encoder's mean as an RGB color 0..255, rounded down as in LLaVA's padding."""
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue


def render_views(
    image: Image.Image, plan: TilePlan, fill: tuple[int, int, int] = (0, 0, 0), *, interpolation: str = "bicubic"
) -> Tensor:
    """Render the views of an image in their order as uint8 [views, 3, tile, tile].

    Args:
        image: the decoded RGB image that `plan` is for.
        fill: RGB color 0..255 of the padding; the encoder's mean makes it nearly zero after normalization.
        interpolation: "bicubic" or "bilinear", antialiased.

    Raises:
        UserError: the image has another size than the plan, or there is no such interpolation.
    """
    choose(interpolation, ("bicubic", "bilinear"), "interpolation of views")
    if image.size != plan.size[::-1]:
        width, height = image.size
        raise UserError(
            f"image: {height} x {width} pixels; expected {plan.size.height} x {plan.size.width} as in its plan"
        )
    # PyTorch's uint8 resizing is 1.5 to 4 times as fast as Pillow's and differs from it by at most 2 of 255. It is
    # fastest on interleaved channels, which is how Pillow stores them.
    pixels_13HW = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    views_V3TT = torch.empty(len(plan.views), 3, plan.tile, plan.tile, dtype=torch.uint8)
    tiles = [number for number, view in enumerate(plan.views) if view != OVERVIEW]
    if tiles:
        canvas_3HW = _fill_canvas(pixels_13HW, plan.tiles, plan.canvas, fill, interpolation)
        split = canvas_3HW.unflatten(2, (plan.grid.columns, plan.tile)).unflatten(1, (plan.grid.rows, plan.tile))
        # The overview comes before or after all tiles, so the tiles are one slice.
        views_V3TT[tiles[0] : tiles[-1] + 1].unflatten(0, plan.grid).copy_(split.permute(1, 3, 0, 2, 4))
    if OVERVIEW in plan.views:
        square = ImageSize(plan.tile, plan.tile)
        overview_3TT = _fill_canvas(pixels_13HW, plan.overview, square, fill, interpolation)
        views_V3TT[plan.views.index(OVERVIEW)] = overview_3TT
    return views_V3TT


def render_input(preprocess: Preprocess, image: Image.Image, plan: TilePlan) -> Tensor:
    """Render the views of an image as an encoder reads them: padded as the plan says, resized as it resizes."""
    fill = mean_color(preprocess.mean) if plan.padding_color == "mean" else (0, 0, 0)
    return render_views(image, plan, fill, interpolation=preprocess.interpolation)


def render_sample(
    images: Sequence[Image.Image],
    plans: Sequence[TilePlan],
    fill: tuple[int, int, int] = (0, 0, 0),
    *,
    interpolation: str = "bicubic",
) -> Tensor:
    """Render the views of several images, one image after the other, uint8 [views, 3, tile, tile]; see `render_views`.

    Raises:
        UserError: there are none, more or fewer images than plans, or one has another size than its plan.
    """
    if len(images) != len(plans) or not plans:
        raise UserError(f"sample: {len(images)} images; expected as many as plans ({len(plans)}), at least 1")
    pairs = zip(images, plans, strict=True)
    return torch.cat([render_views(image, plan, fill, interpolation=interpolation) for image, plan in pairs])


def _fill_canvas(
    pixels_13HW: Tensor, fit: Fit, canvas: ImageSize, fill: tuple[int, int, int], interpolation: str
) -> Tensor:
    """Resize an image and pad it to the canvas, uint8 [3, H, W]."""
    height, width = pixels_13HW.shape[2:]
    if height > fit.resized.height and width < fit.resized.width:
        # Shrunk before it is enlarged, as Pillow 13 does: less to compute, and because values are rounded between the
        # passes, the other order differs by up to 11 of 255. Everything else goes width first, as older Pillow did.
        pixels_13HW = interpolate(pixels_13HW, (fit.resized.height, width), mode=interpolation, antialias=True)
    if pixels_13HW.shape[2:] != fit.resized:
        pixels_13HW = interpolate(pixels_13HW, fit.resized, mode=interpolation, antialias=True)
    resized_3HW = pixels_13HW[0]
    if fit.resized == canvas:
        return resized_3HW
    canvas_3HW = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, *canvas)
    top, left = fit.padding.top, fit.padding.left
    canvas_3HW[:, top : top + fit.resized.height, left : left + fit.resized.width] = resized_3HW
    return canvas_3HW


def image_to_canvas(points_P2: ArrayLike, plan: TilePlan, *, overview: bool = False) -> Floats:
    """Map points of the image to the canvas of its tiles, or to its overview."""
    scale, shift = _scale_and_shift(plan, overview=overview)
    return np.asarray(points_P2, dtype=np.float64) * scale + shift


def canvas_to_image(points_P2: ArrayLike, plan: TilePlan, *, overview: bool = False) -> Floats:
    """Map points of the canvas, or of the overview, to the image; those on padding lie outside of it."""
    scale, shift = _scale_and_shift(plan, overview=overview)
    return (np.asarray(points_P2, dtype=np.float64) - shift) / scale


def _scale_and_shift(plan: TilePlan, *, overview: bool) -> tuple[Floats, Floats]:
    (height, width), padding = plan.overview if overview else plan.tiles
    return np.array((width / plan.size.width, height / plan.size.height)), np.array(padding[:2], dtype=np.float64)


def boxes_in_view(
    boxes_R4: ArrayLike, plan: TilePlan, view: tuple[int, int], *, min_visible: float = MIN_VISIBLE
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map boxes in [0, 1] of the image to [0, 1] of a view, clipped by it.

    Args:
        view: row and column of a tile, or `OVERVIEW`.
        min_visible: boxes of which the view shows a smaller share of the area are dropped.

    Returns:
        The visible boxes in order, [K, 4], and the mask of their rows, [R].
    """
    boxes = as_boxes(boxes_R4)
    corners_R22 = boxes.reshape(-1, 2, 2) * plan.size[::-1]
    points = image_to_canvas(corners_R22, plan, overview=view == OVERVIEW)
    if view != OVERVIEW:
        # Rows and columns of tiles count from 1.
        points = points - (np.array(view[::-1]) - 1) * plan.tile
    whole_R4 = points.reshape(-1, 4) / plan.tile
    moved_R4 = as_boxes(whole_R4.clip(0.0, 1.0))
    # The second condition matters when `min_visible` is 0: a box outside the view has no area in it.
    visible_R = (areas(moved_R4) >= min_visible * areas(whole_R4)) & (areas(moved_R4) > 0)
    return moved_R4[visible_R], visible_R


def canvas_to_tile(points_P2: ArrayLike, plan: TilePlan) -> tuple[NDArray[np.int64], Floats]:
    """Return row and column (from 1) of the tile of each point, [P, 2], and the point in that tile.

    A point on the border of two tiles belongs to the lower or right one; points outside of the canvas to the nearest.
    """
    points = np.asarray(points_P2, dtype=np.float64)
    cells = np.floor(points[..., ::-1] / plan.tile).astype(np.int64).clip(0, np.array(plan.grid) - 1)
    return cells + 1, points - cells[..., ::-1] * plan.tile


def tile_to_canvas(cells_P2: ArrayLike, points_P2: ArrayLike, plan: TilePlan) -> Floats:
    """Map points in tiles to the canvas, the inverse of `canvas_to_tile`."""
    corners = (np.asarray(cells_P2, dtype=np.int64)[..., ::-1] - 1) * plan.tile
    return np.asarray(points_P2, dtype=np.float64) + corners
