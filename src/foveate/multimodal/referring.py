"""Regions of a question as vectors: the points drawn from each shape, and the map that they are read from.

A region's token is overwritten by one vector that a region encoder reads from the tower's own map, tiles and overview
of an image together, whatever few tokens the decoder sees of it. After Ferret-v2 (arXiv 2404.07973), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core import seeds
from foveate.multimodal.assemble import plan_sample
from foveate.multimodal.settings import MultimodalSettings
from foveate.records.geometry import Placement
from foveate.records.shapes import Shape
from foveate.vision.anyres_map import fuse_views, move_to_canvas
from foveate.vision.regions import RegionBatch, RegionEncoder
from foveate.vision.regions.masks import draw_points
from foveate.vision.regions.mean import mean_cells
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan


class RegionPoints(NamedTuple):
    """Points drawn from a region.

    Attributes:
        points_N2: x and y in [0, 1] of the model input. count: how many of them, in front, are distinct.
        size: height and width of the image in pixels.
    """

    points_N2: NDArray[np.float32]
    count: int
    size: tuple[int, int]


class RegionPrompts(NamedTuple):
    """Regions of the questions of B rows, in the order in which their tokens stand in the rows.

    Attributes:
        boxes_R4: corners in [0, 1] of the model input.
        image_R: number of the image in the row.
        points_RN2, count_R: points in each region and how many are distinct; None where a box is all that is known.
        size_R2: height and width of the image in pixels.
    """

    boxes_R4: Tensor
    image_R: Tensor
    points_RN2: Tensor | None = None
    count_R: Tensor | None = None
    size_R2: Tensor | None = None

    @classmethod
    def create(
        cls, regions: Sequence[tuple[int, Sequence[float] | NDArray[np.float64]]], points: Sequence[RegionPoints] = ()
    ) -> RegionPrompts:
        """Collect regions (image, box) and, if there are any, the points of all of them."""
        # Reshaped, so that an empty list gives [0, 4] as well.
        boxes_R4 = torch.tensor(np.array([list(box) for _, box in regions]).reshape(-1, 4), dtype=torch.float32)
        image_R = torch.tensor([image for image, _ in regions], dtype=torch.long)
        if not points:
            return cls(boxes_R4, image_R)
        return cls(
            boxes_R4,
            image_R,
            torch.from_numpy(np.stack([each.points_N2 for each in points])),
            torch.tensor([each.count for each in points]),
            torch.tensor([each.size for each in points]),
        )

    def select(self, regions: Tensor) -> RegionPrompts:
        """Select regions by number or mask."""
        others = (None if column is None else column[regions] for column in self[2:])
        return RegionPrompts(self.boxes_R4[regions], self.image_R[regions], *others)

    def to(self, device: torch.device) -> RegionPrompts:
        """Move to a device."""
        others = (None if column is None else column.to(device) for column in self[2:])
        return RegionPrompts(self.boxes_R4.to(device), self.image_R.to(device), *others)


def place_points(shape: Shape, placement: Placement, num_points: int) -> RegionPoints:
    """Draw the points of a shape in pixels of its image, and move them into the model input.

    Raises:
        UserError: the shape is empty or does not lie in the image.
    """
    size = (placement.height, placement.width)
    points_N2, count = draw_points(shape, size, num_points)
    # A placement moves boxes, not points: where the corners of what it shows go, says where points go.
    crop_14 = placement.to_original(np.array([[0.0, 0.0, 1.0, 1.0]]))
    ((crop_x1, crop_y1, crop_x2, crop_y2),) = crop_14
    ((x1, y1, x2, y2),) = placement.to_input(crop_14, min_visible=0.0)[0]
    inside_N2 = (points_N2 - (crop_x1, crop_y1)) / (crop_x2 - crop_x1, crop_y2 - crop_y1)
    if placement.flip:
        inside_N2[:, 0] = 1 - inside_N2[:, 0]
    moved_N2 = np.array((x1, y1)) + inside_N2.clip(0, 1) * np.array((x2 - x1, y2 - y1))
    return RegionPoints(moved_N2.astype(np.float32), count, size)


def spread_points(boxes_R4: Tensor, num_points: int) -> Tensor:
    """Return points [R, N, 2] inside boxes, at the same fractions of the sides of each."""
    # The fractions are the same in every call, so that equal boxes give equal vectors.
    unit_N2 = torch.from_numpy(seeds.generator("box points", num_points).random((num_points, 2))).to(boxes_R4)
    return boxes_R4[:, None, :2] + unit_N2 * (boxes_R4[:, None, 2:] - boxes_R4[:, None, :2])


class RegionReader(nn.Module):
    """Read the vectors of regions from the tower's tokens.

    Args:
        encoder: of regions. grid: of a view's tokens.
        settings: of the model. With `region_mean` the connector's tokens stand behind the tower's: [V, L, D + E].
    """

    def __init__(self, encoder: RegionEncoder, *, grid: tuple[int, int], settings: MultimodalSettings) -> None:
        super().__init__()
        self.encoder, self.grid, self.settings = encoder, grid, settings
        if settings.region_mean:
            # The encoder then adds nothing at first, and yet gets a gradient.
            for parameter in encoder.last_layer.parameters():
                nn.init.zeros_(parameter)

    def read_views(self, tokens_VLD: Tensor, boxes_R4: Tensor, view_R: Tensor) -> Tensor:
        """Return the vectors [R, E] of boxes in [0, 1] of single views."""
        used_U, map_R = view_R.unique(return_inverse=True)
        return self._encode(
            [self._view_map(tokens_VLD[view]) for view in used_U.tolist()], self._from_boxes(boxes_R4, map_R)
        )

    def read_prompts(
        self, tokens_VLD: Tensor, views_BK: Tensor, image_BK: Tensor, row_R: Tensor, prompts: RegionPrompts
    ) -> Tensor:
        """Return the vectors [R, E] of the regions of questions.

        Args:
            tokens_VLD: of the tower. views_BK: numbers of the views of each row, -1 behind the last.
            image_BK: number of each view's image. row_R: row of each region.
        """
        images_R2 = torch.stack([row_R, prompts.image_R], dim=1)
        used_U2, map_R = images_R2.unique(dim=0, return_inverse=True)
        batch = self._from_boxes(prompts.boxes_R4, map_R)
        if prompts.points_RN2 is not None and prompts.count_R is not None:
            batch = batch._replace(points_RN2=prompts.points_RN2, count_R=prompts.count_R)
        maps, parts, order = [], [], []
        for number, (row, image) in enumerate(used_U2.tolist()):
            views = views_BK[row][(image_BK[row] == image) & (views_BK[row] >= 0)]
            order.append((map_R == number).nonzero()[:, 0])
            parts.append(batch.select(order[-1]))
            assembly = self.settings.assembly
            if assembly is None or prompts.size_R2 is None:
                maps.append(self._view_map(tokens_VLD[views[0]]))
                continue
            height, width = prompts.size_R2[order[-1][0]].tolist()
            # Whether an image is split depends on how many the sample has.
            count = int(image_BK[row][views_BK[row] >= 0].max()) + 1
            plan = plan_sample([ImageSize(height, width)] * count, assembly).images[0]
            maps.append(self._fuse(tokens_VLD[views], plan))
            parts[-1] = move_to_canvas(parts[-1], plan)
        if parts:
            columns = [torch.cat(column) for column in zip(*parts, strict=True)]
            # Regions were grouped by image; this restores the order of their tokens.
            batch = RegionBatch(*columns).select(torch.cat(order).argsort())
        return self._encode(maps, batch)

    def _view_map(self, tokens_LD: Tensor) -> Tensor:
        return tokens_LD.T.unflatten(1, self.grid)

    def _fuse(self, tokens_VLD: Tensor, plan: TilePlan) -> Tensor:
        fused_CHW = fuse_views(tokens_VLD, plan, self.grid, interpolation=self.settings.region_fusion)
        if not self.settings.region_mean or len(plan.views) == 1 or OVERVIEW not in plan.views:
            return fused_CHW
        # Tiles plus overview would be twice as long as the tokens that the language model reads.
        width = self.encoder.width
        return torch.cat([fused_CHW[:width], fused_CHW[width:] / 2])

    def _encode(self, maps: Sequence[Tensor], batch: RegionBatch) -> Tensor:
        width, behind = self.encoder.width, self.encoder.out if self.settings.region_mean else 0
        if not maps:
            # A batch without regions gives the encoder's weights a gradient of zero, not none.
            maps = [self.encoder.last_layer.weight.new_zeros(width + behind, *self.grid)]
        vectors_RE = self.encoder([map_CHW[:width] for map_CHW in maps], batch)
        if self.settings.region_mean:
            return vectors_RE + mean_cells([map_CHW[width:] for map_CHW in maps], batch)
        # A LayerNorm gives them the length of visual tokens, which `visual_gain` scales to that of embeddings (not in
        # the paper).
        return F.layer_norm(vectors_RE, vectors_RE.shape[-1:]) if self.settings.region_norm else vectors_RE

    def _from_boxes(self, boxes_R4: Tensor, map_R: Tensor) -> RegionBatch:
        points_RN2 = spread_points(boxes_R4, self.settings.region_points)
        return RegionBatch(points_RN2, torch.full_like(map_R, points_RN2.shape[1]), boxes_R4, map_R)
