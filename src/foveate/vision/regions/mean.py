"""Region encoder `mean`: the mean of a region's bilinear samples, the baseline of Ferret's ablation (table 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.records.shapes import Shape
from foveate.vision.regions import Maps, RegionBatch, RegionEncoder, as_regions, sample_cells, stack_maps


class MeanOptions(Settings):
    """Options of the mean of samples."""

    num_points: int = Field(default=512, ge=1, le=8192, description="points drawn from a region")


def mean_samples(maps: Maps, regions: RegionBatch) -> Tensor:
    """Return the mean [R, C] of the samples at the distinct points of each region."""
    cells_LC, sizes_B2 = stack_maps(maps)
    batch = regions.to(cells_LC.device)
    samples_RNC = sample_cells(cells_LC, sizes_B2, batch.points_RN2, batch.map_R)
    distinct_RN = torch.arange(samples_RNC.shape[1], device=cells_LC.device) < batch.count_R[:, None]
    shares_RN = distinct_RN / batch.count_R[:, None]
    return torch.einsum("rn,rnc->rc", shares_RN.to(samples_RNC.dtype), samples_RNC)


class MeanEncoder(RegionEncoder):
    """Mean of bilinear samples and a linear layer, which may stand in front of the mean or behind it."""

    Options = MeanOptions

    def __init__(self, *, width: int, out: int, num_points: int = 512) -> None:
        super().__init__(width=width, out=out, num_points=num_points)
        self.adapter = nn.Linear(width, out)

    def forward(
        self,
        maps: Maps,
        regions: RegionBatch | Sequence[Sequence[Shape]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Return the vectors [R, E] of all regions of a batch; see `RegionEncoder.forward`."""
        self.check_maps(maps)
        return self.adapter(mean_samples(maps, as_regions(regions, sizes, num_points=self.num_points)))


REGION_ENCODER = MeanEncoder
