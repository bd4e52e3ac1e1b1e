"""Region encoder `roi`: RoI-Align of a region's box, as one token or several.

Several are the feature replay of Grasp Any Region (NVlabs/Grasp-Any-Region): what the decoder reads of a region keeps
its layout. Points, strokes and masks are read as their box.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.records.shapes import Shape
from foveate.vision.regions import Maps, RegionBatch, RegionEncoder, as_regions
from foveate.vision.roi import align_boxes


class RoiOptions(Settings):
    """Options of RoI-Align."""

    side: int = Field(default=1, ge=1, le=16, description="rows and columns of tokens of a region")


class RoiEncoder(RegionEncoder):
    """RoI-Align to side x side and a linear layer."""

    Options = RoiOptions

    def __init__(self, *, width: int, out: int, side: int = 1) -> None:
        # Only boxes are read, so one point per region is enough.
        super().__init__(width=width, out=out, num_points=1)
        self.side, self.tokens_per_region = side, side * side
        self.adapter = nn.Linear(width, out)

    @property
    def last_layer(self) -> nn.Linear:
        """See `RegionEncoder.last_layer`."""
        return self.adapter

    def forward(
        self,
        maps: Maps,
        regions: RegionBatch | Sequence[Sequence[Shape]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Return the vectors [R, E], or [R, T, E] row by row of each region; see `RegionEncoder.forward`."""
        self.check_maps(maps)
        batch = as_regions(regions, sizes, num_points=self.num_points)
        first = next(iter(maps))
        batch = batch.to(first.device)
        pooled_RTC = first.new_empty(len(batch.map_R), self.tokens_per_region, self.width)
        # Map by map: maps of tiled images differ in size, which one call of RoI-Align cannot handle.
        for number, map_CHW in enumerate(maps):
            of_map = batch.map_R == number
            pooled = align_boxes(map_CHW[None], batch.boxes_R4[of_map], batch.map_R[of_map] * 0, side=self.side)
            pooled_RTC = pooled_RTC.index_put((of_map.nonzero()[:, 0],), pooled.flatten(2).transpose(1, 2))
        vectors_RTE = self.adapter(pooled_RTC)
        return vectors_RTE[:, 0] if self.tokens_per_region == 1 else vectors_RTE


REGION_ENCODER = RoiEncoder
