"""Region encoder `mean`: the mean of a region's bilinear samples, the baseline of Ferret's ablation (table 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.records.shapes import Shape
from foveate.vision.regions import Maps, RegionBatch, RegionEncoder, as_regions, sample_cells, stack_maps


class MeanOptions(Settings):
    """Options of the mean of samples."""

    num_points: int = Field(default=512, ge=1, le=8192, description="points drawn from a region")
    official_xy_swap: bool = Field(
        default=False, description="read features at the transposed position, as released weights were trained"
    )


def mean_samples(maps: Maps, regions: RegionBatch) -> Tensor:
    """Return the mean [R, C] of the samples at the distinct points of each region."""
    cells_LC, sizes_B2 = stack_maps(maps)
    batch = regions.to(cells_LC.device)
    samples_RNC = sample_cells(cells_LC, sizes_B2, batch.points_RN2, batch.map_R)
    return torch.einsum("rn,rnc->rc", _distinct_shares(batch).to(samples_RNC.dtype), samples_RNC)


def mean_cells(maps: Maps, regions: RegionBatch) -> Tensor:
    """Return the mean [R, C] of the cells that the distinct points of each region lie in.

    Cells tile the map from edge to edge, as patches do, where `mean_samples` follows the official code, which reads 0
    and 1 at the centers of the outermost cells.
    """
    cells_LC, sizes_B2 = stack_maps(maps)
    batch = regions.to(cells_LC.device)
    height_width_R12 = sizes_B2[batch.map_R][:, None]
    at_RN2 = batch.points_RN2 * height_width_R12.flip(-1)
    # A point on the far edge, at 1, belongs to the last cell.
    column_RN, row_RN = torch.minimum(at_RN2.long(), height_width_R12.flip(-1) - 1).unbind(-1)
    start_B = sizes_B2.prod(dim=1).cumsum(dim=0) - sizes_B2.prod(dim=1)
    index_RN = start_B[batch.map_R][:, None] + row_RN * height_width_R12[..., 1] + column_RN
    shares_RN = _distinct_shares(batch)
    exact_LC = cells_LC.float()
    # Sums the cells without building a copy [R, N, C] of them.
    return F.embedding_bag(index_RN, exact_LC, mode="sum", per_sample_weights=shares_RN.to(exact_LC.dtype))


def _distinct_shares(batch: RegionBatch) -> Tensor:
    """Return the share [R, N] of each point in the mean of its region: none of repeats."""
    index_N = torch.arange(batch.points_RN2.shape[1], device=batch.count_R.device)
    return (index_N < batch.count_R[:, None]) / batch.count_R[:, None]


class MeanEncoder(RegionEncoder):
    """Mean of bilinear samples and a linear layer, which may stand in front of the mean or behind it."""

    Options = MeanOptions

    def __init__(self, *, width: int, out: int, num_points: int = 512, official_xy_swap: bool = False) -> None:
        super().__init__(width=width, out=out, num_points=num_points)
        self.official_xy_swap = official_xy_swap
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
        """Return the vectors [R, E] of all regions of a batch; see `RegionEncoder.forward`."""
        self.check_maps(maps)
        batch = as_regions(regions, sizes, num_points=self.num_points)
        if self.official_xy_swap:
            batch = batch._replace(points_RN2=batch.points_RN2.flip(-1))
        return self.adapter(mean_samples(maps, batch))


REGION_ENCODER = MeanEncoder
