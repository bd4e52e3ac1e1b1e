"""Regions of feature maps as vectors. A kind is a module that defines REGION_ENCODER.

    encoder = foveate.RegionSampler(width=1024, out=4096)
    vectors_RE = encoder(maps_BCHW, regions)

All kinds read the same `RegionBatch`: points drawn from each region, and its box.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.core.plugins import load_all
from foveate.core.recipes import Settings, validate
from foveate.records.shapes import Mask, Shape, enclosing_box
from foveate.vision.regions.masks import POINT_RADIUS, draw_points
from foveate.vision.registry import seeded

Maps = Tensor | Sequence[Tensor]
"""Feature maps [B, C, H, W], or B maps [C, H, W] of any sizes."""


class RegionBatch(NamedTuple):
    """R regions of the maps of a batch.

    Attributes:
        points_RN2: x and y of points in each region, in [0, 1] of its map.
        count_R: how many of them, in front, are distinct.
        boxes_R4: corners of the region in [0, 1] of its map.
        map_R: number of the map.
    """

    points_RN2: Tensor
    count_R: Tensor
    boxes_R4: Tensor
    map_R: Tensor

    def select(self, regions: Tensor | slice) -> RegionBatch:
        """Select regions by number, mask or slice."""
        return RegionBatch(*(column[regions] for column in self))

    def to(self, device: torch.device | str) -> RegionBatch:
        """Move to a device."""
        return RegionBatch(*(column.to(device) for column in self))


def prepare_regions(
    regions: Sequence[Sequence[Shape]],
    sizes: Sequence[tuple[int, int]],
    *,
    num_points: int,
    rng: np.random.Generator | None = None,
    radius: tuple[float, float] = POINT_RADIUS,
) -> RegionBatch:
    """Draw the points of the regions of several images, each of which is seen by one map as a whole.

    Args:
        regions: shapes of each image, in its pixels. sizes: height and width of each image.
        num_points: N. rng: None draws the same for equal regions.
        radius: of a point's window, see `foveate.vision.regions.masks`.

    Raises:
        UserError: a region is empty or does not lie in its image; names its number from 1.
    """
    points: list[NDArray[np.float32]] = []
    counts, boxes, maps = [], [], []
    for number, (shapes, size) in enumerate(zip(regions, sizes, strict=True)):
        for shape in shapes:
            try:
                points_N2, distinct = draw_points(shape, size, num_points, rng=rng, radius=radius)
            except UserError as error:
                raise UserError(f"region <{len(points) + 1}>: {str(error).removeprefix('region ')}") from error
            box = enclosing_box(shape)
            assert box is not None, "an empty shape has no points"
            # (width, height) twice: the tuple is repeated, not multiplied.
            corners_4 = np.array([box.x1, box.y1, box.x2, box.y2]) / (np.array(size[::-1] * 2))
            points.append(points_N2)
            counts.append(distinct)
            boxes.append(_widen(corners_4, points_N2, size))
            maps.append(number)
    return RegionBatch(
        torch.from_numpy(np.stack(points)) if points else torch.zeros(0, num_points, 2),
        torch.tensor(counts, dtype=torch.long),
        torch.from_numpy(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)),
        torch.tensor(maps, dtype=torch.long),
    )


def _widen(box_4: NDArray[np.float64], points_N2: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the box around a region's pixels where its shape has no area, as points and straight strokes have."""
    if (box_4[2:] > box_4[:2]).all():
        return box_4
    pixel_2 = 1 / np.array(size[::-1])
    # Points are the upper left corners of pixels, so the box ends one pixel further.
    return np.concatenate([points_N2.min(axis=0), (points_N2.max(axis=0) + pixel_2).clip(max=1)])


def as_regions(
    regions: RegionBatch | Sequence[Sequence[Shape]], sizes: Sequence[tuple[int, int]] | None, *, num_points: int
) -> RegionBatch:
    """Return a batch of regions as it is, or draw the points of shapes; see `prepare_regions`.

    Raises:
        UserError: shapes in pixels without the sizes of their images.
    """
    if isinstance(regions, RegionBatch):
        return regions
    listed = [list(of_image) for of_image in cast(Sequence[Sequence[Shape]], regions)]
    if sizes is None:
        masks = [next((shape.size for shape in of_image if isinstance(shape, Mask)), None) for of_image in listed]
        if any(of_image and size is None for of_image, size in zip(listed, masks, strict=True)):
            raise UserError("sizes: missing; expected height and width in pixels of each image that has regions")
        # Images without regions are not looked at: any size will do for them.
        sizes = [size or (1, 1) for size in masks]
    if len(sizes) != len(listed):
        raise UserError(f"sizes: not one for each image (got {len(sizes)}); expected {len(listed)}")
    return prepare_regions(listed, sizes, num_points=num_points)


def stack_maps(maps: Maps) -> tuple[Tensor, Tensor]:
    """Return the cells of all maps below one another [L, C], row by row, and rows and columns of each map [B, 2]."""
    maps_B = list(maps)
    sizes_B2 = torch.tensor([map_CHW.shape[1:] for map_CHW in maps_B], dtype=torch.long).view(-1, 2)
    return torch.cat([map_CHW.permute(1, 2, 0).flatten(0, 1) for map_CHW in maps_B]), sizes_B2.to(maps_B[0].device)


def sample_cells(cells_LC: Tensor, sizes_B2: Tensor, points_RN2: Tensor, map_R: Tensor) -> Tensor:
    """Return the bilinear samples [R, N, C] of maps at points; 0 and 1 are the centers of the outermost cells.

    As `grid_sample` with `align_corners`, but for maps of different sizes at once, and without a copy of a map for
    each region. Half precision is sampled in float32.

    Args:
        cells_LC, sizes_B2: of `stack_maps`.
        points_RN2: x and y in [0, 1] of the map. map_R: number of each region's map.
    """
    exact_LC = cells_LC if cells_LC.dtype == torch.float64 else cells_LC.float()
    start_B = sizes_B2.prod(dim=1).cumsum(dim=0) - sizes_B2.prod(dim=1)
    last_R12 = (sizes_B2.flip(1)[map_R] - 1)[:, None]
    at_RN2 = points_RN2.to(exact_LC.dtype) * last_R12
    low_RN2 = torch.minimum(at_RN2.long().clamp(min=0), last_R12)
    # A point on the last cell has no neighbor beyond it: it is its own, with share 0.
    high_RN2 = torch.minimum(low_RN2 + 1, last_R12)
    share_RN2 = at_RN2 - low_RN2
    (x0, y0), (x1, y1), (right, down) = (pair.unbind(-1) for pair in (low_RN2, high_RN2, share_RN2))
    columns_R1, first_R1 = last_R12[..., 0] + 1, start_B[map_R][:, None]
    corner_RN4 = first_R1[..., None] + torch.stack(
        [row * columns_R1 + column for row in (y0, y1) for column in (x0, x1)], dim=-1
    )
    weight_RN4 = torch.stack([v * h for v in (1 - down, down) for h in (1 - right, right)], dim=-1)
    # A weighted sum of rows in one kernel, with a gradient for the map.
    samples_KC = F.embedding_bag(
        corner_RN4.flatten(0, 1), exact_LC, mode="sum", per_sample_weights=weight_RN4.flatten(0, 1)
    )
    return samples_KC.view(*points_RN2.shape[:2], cells_LC.shape[1]).to(cells_LC.dtype)


class RegionEncoder(nn.Module, ABC):
    """Turn regions of feature maps into vectors.

    Attributes:
        width: C of the maps. out: E of the vectors. num_points: N to draw from a region.
        tokens_per_region: T; a kind with one returns [R, E], one with several [R, T, E].
    """

    Options: type[Settings] = Settings
    tokens_per_region = 1

    def __init__(self, *, width: int, out: int, num_points: int) -> None:
        super().__init__()
        self.width, self.out, self.num_points = width, out, num_points

    @property
    @abstractmethod
    def last_layer(self) -> nn.Linear:
        """The layer that gives the vectors."""

    @abstractmethod
    def forward(
        self,
        maps: Maps,
        regions: RegionBatch | Sequence[Sequence[Shape]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Return the vectors of all regions of a batch, in order.

        Args:
            maps: [B, C, H, W], or one [C, H, W] for each image.
            regions: of `prepare_regions`, or the shapes of each image in its pixels.
            sizes: height and width of each image, for shapes other than masks.
        """

    def check_maps(self, maps: Maps) -> None:
        """Raise UserError unless the maps have the encoder's width."""
        for map_CHW in maps:
            if map_CHW.dim() != 3 or map_CHW.shape[0] != self.width:
                raise UserError(
                    f"maps: shape {tuple(map_CHW.shape)} does not fit the region encoder; expected [{self.width}, H, W]"
                )


def region_kinds() -> list[str]:
    """List the kinds of region encoders."""
    return sorted(load_all(__name__, "REGION_ENCODER"))


def build_region_encoder(
    kind: str, options: Mapping[str, Any], *, width: int, out: int, seed: int = 0
) -> RegionEncoder:
    """Build an untrained region encoder.

    Args:
        kind: one of `region_kinds()`. options: fields of the kind's `Options`.
        width: C of the feature maps. out: E of the vectors.

    Raises:
        UserError: unknown kind or option, or a wrong value.
    """
    kinds = load_all(__name__, "REGION_ENCODER")
    encoder_class = kinds[choose(kind, sorted(kinds), "region encoder")]
    checked = validate(encoder_class.Options, dict(options), where=f"region encoder '{kind}'")
    with seeded(seed):
        return encoder_class(width=width, out=out, **checked.model_dump())
