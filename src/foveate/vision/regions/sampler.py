"""Region encoder `sampler`: Ferret's spatial-aware visual sampler, all regions of a batch at once.

Points of a region are thinned out twice by farthest-point sampling; each that stays gathers the features of its nearest
neighbors. Both layers in front of the activation are linear, so they are multiplied into one and applied to the points,
or to the cells of the map where those are fewer, instead of to every pair of neighbors: the same result at a fraction
of the multiplications. Names of weights are those of apple/ml-ferret.

Source: Ferret (arXiv 2310.07704), section 3.2; apple/ml-ferret, `GeoRegionSampler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, validate
from foveate.records.shapes import Shape
from foveate.vision.layers import layer_norm
from foveate.vision.regions import Maps, RegionBatch, RegionEncoder, as_regions, sample_cells, stack_maps

# Floats of point features, and of pairs of neighbors, at a time: the first bounds memory, the second what a processor's
# cache has to hold.
_MAX_FLOATS = 2**22
_MAX_PAIR_FLOATS = 2**20


class SamplerOptions(Settings):
    """Options of the spatial-aware sampler; the defaults are those of the released models."""

    num_points: int = Field(default=512, ge=1, le=8192, description="points drawn from a region")
    anchors: tuple[int, ...] = Field(default=(128, 32), min_length=1, description="points that each block keeps")
    neighbors: tuple[int, ...] = Field(default=(24, 24), description="nearest points that each of them gathers")
    # The official class defaults to "mean", but the scripts that trained the released models pass "max".
    pool: Literal["max", "mean"] = Field(default="max", description="of the neighbors' features")
    official_xy_swap: bool = Field(
        default=False, description="read features at the transposed position, as released weights were trained"
    )

    @model_validator(mode="after")
    def _check_counts(self) -> SamplerOptions:
        if len(self.anchors) != len(self.neighbors):
            raise ValueError(f"neighbors: {len(self.neighbors)} numbers; expected one for each of {self.anchors}")
        points = self.num_points
        for anchors, neighbors in zip(self.anchors, self.neighbors, strict=True):
            if not (1 <= anchors <= points and 1 <= neighbors <= points):
                raise ValueError(
                    f"anchors, neighbors: {anchors}, {neighbors} of {points} points; expected 1 to {points}"
                )
            points = anchors
        return self


@torch.no_grad()
def farthest_points(points_RN2: Tensor, count: int, start_R: Tensor) -> Tensor:
    """Return the indices [R, count] of points that lie far apart: each is the farthest from those before it.

    Args:
        start_R: index of the first.
    """
    x_RN, y_RN = (column.contiguous() for column in points_RN2.unbind(-1))
    distance_RN = torch.full_like(x_RN, torch.inf)
    index_RM = start_R.new_empty(len(points_RN2), count)
    current_R1 = start_R[:, None]
    for step in range(count):
        index_RM[:, step] = current_R1[:, 0]
        across_RN, down_RN = x_RN - x_RN.gather(1, current_R1), y_RN - y_RN.gather(1, current_R1)
        distance_RN = torch.minimum(distance_RN, across_RN * across_RN + down_RN * down_RN)
        current_R1 = distance_RN.argmax(dim=1, keepdim=True)
    return index_RM


@torch.no_grad()
def nearest_points(points_RN2: Tensor, queries_RM2: Tensor, count: int) -> Tensor:
    """Return the indices [R, M, count] of the points nearest each query, in no order."""
    # The square of a difference multiplied out: rounding decides between neighbors at equal distance as in the
    # official code.
    distance_RMN = -2 * (queries_RM2 @ points_RN2.transpose(1, 2))
    distance_RMN += (queries_RM2**2).sum(dim=-1)[:, :, None]
    distance_RMN += (points_RN2**2).sum(dim=-1)[:, None]
    return distance_RMN.topk(count, largest=False, sorted=False).indices


@torch.no_grad()
def central_point(points_RN2: Tensor) -> Tensor:
    """Return the index [R] of the point nearest the mean of a region's points."""
    return (points_RN2 - points_RN2.mean(dim=1, keepdim=True)).square().sum(dim=-1).argmin(dim=1)


class _Folded(NamedTuple):
    """Weights of neighbor and anchor [C, C + 2] and bias [C] of a block."""

    of_neighbor: Tensor
    of_anchor: Tensor
    bias: Tensor


class _Aggregate(nn.Module):
    """Linear, ReLU, LayerNorm, under the official names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # A convolution of width 1 to match the official name and shape; `_fold` uses it as a matrix.
        self.net = nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.ReLU())
        self.norm = nn.LayerNorm(outputs)


class RegionSampler(RegionEncoder):
    """Spatial-aware visual sampler: (maps, regions) -> vectors.

    Args:
        width: C of the feature maps. out: E of the vectors.
        fields: see `Options`.

    Example:
        >>> import torch
        >>> from foveate.records import Point
        >>> sampler = RegionSampler(width=8, out=4, num_points=32, anchors=(8,), neighbors=(4,))
        >>> sampler(torch.zeros(1, 8, 6, 6), [[PixelBox(0, 0, 90, 40), Point(70, 30)]], sizes=[(48, 96)]).shape
        torch.Size([2, 4])
    """

    Options = SamplerOptions

    def __init__(self, *, width: int, out: int, **fields: Any) -> None:
        options = validate(SamplerOptions, fields, where="region sampler")
        super().__init__(width=width, out=out, num_points=options.num_points)
        self.options = options
        blocks = range(len(options.anchors))
        self.diff_projector_list = nn.ModuleList(nn.Linear(width + 2, width + 2) for _ in blocks)
        self.agg_projector_list = nn.ModuleList(_Aggregate(2 * (width + 2), width) for _ in blocks)
        self.flatten_projector = nn.Linear(width * options.anchors[-1], width)
        self.dim_projector = nn.Linear(width, out)

    @property
    def last_layer(self) -> nn.Linear:
        """See `RegionEncoder.last_layer`."""
        return self.dim_projector

    def forward(
        self,
        maps: Maps,
        regions: RegionBatch | Sequence[Sequence[Shape]],
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the vectors [R, E] of all regions of a batch; see `RegionEncoder.forward`.

        Args:
            generator: draws where farthest-point sampling starts, as the official code does; by default it starts at
                the point nearest the region's mean.
        """
        self.check_maps(maps)
        batch = as_regions(regions, sizes, num_points=self.num_points)
        cells_LC, sizes_B2 = stack_maps(maps)
        batch = batch.to(cells_LC.device)
        anchors, points_RM2 = [], batch.points_RN2
        for count in self.options.anchors:
            start_R = central_point(points_RM2) if generator is None else _draw(points_RM2, generator)
            anchors.append(farthest_points(points_RM2, count, start_R))
            points_RM2 = _gather(points_RM2, anchors[-1])
        # Folded in every call, because training changes the weights, but only once for all parts below.
        layers = [self._fold(block) for block in range(len(anchors))]
        # A bilinear sample is linear too: where points outnumber cells, the cells are projected and then sampled.
        projected_LC = None
        if batch.points_RN2[..., 0].numel() > len(cells_LC):
            projected_LC = cells_LC @ layers[0].of_neighbor[:, : self.width].T
        # Few regions at a time: the features of all their points would be by far the largest tensor.
        step = max(1, _MAX_FLOATS // (self.num_points * self.width))
        features = []
        # At least one pass, so that a batch without regions gives the weights a zero gradient instead of none.
        for start in range(0, max(1, len(batch.map_R)), step):
            rows = slice(start, start + step)
            of_rows = [anchor_RM[rows] for anchor_RM in anchors]
            features.append(self._encode(cells_LC, projected_LC, sizes_B2, batch.select(rows), of_rows, layers))
        return self.project(torch.cat(features))

    def project(self, features_RMC: Tensor) -> Tensor:
        """Project the features of the last anchors to vectors [R, E]: two linear layers without activation."""
        return self.dim_projector(self.flatten_projector(features_RMC.flatten(1)))

    def aggregate(
        self,
        block: int,
        features_RNC: Tensor,
        points_RN2: Tensor,
        anchor_RM: Tensor,
        neighbor_RMK: Tensor,
        *,
        layer: _Folded | None = None,
    ) -> Tensor:
        """Gather the features of each anchor's neighbors, [R, M, C].

        Args:
            block: number from 0. features_RNC, points_RN2: of the points before.
            anchor_RM: indices of the points that stay. neighbor_RMK: indices of each one's neighbors.
            layer: the weights of the block where they are folded already.
        """
        layer = layer or self._fold(block)
        values_RNC = features_RNC @ layer.of_neighbor[:, : self.width].T
        at_anchors_RMC, anchors_RM2 = _gather(features_RNC, anchor_RM), _gather(points_RN2, anchor_RM)
        return self._join(block, layer, values_RNC, points_RN2, at_anchors_RMC, anchors_RM2, neighbor_RMK)

    def _encode(
        self,
        cells_LC: Tensor,
        projected_LC: Tensor | None,
        sizes_B2: Tensor,
        batch: RegionBatch,
        anchors: Sequence[Tensor],
        layers: Sequence[_Folded],
    ) -> Tensor:
        """Return the features [R, M, C] of the last anchors of some regions; `projected_LC` are projected cells."""
        points_RN2 = batch.points_RN2
        features_RNC = None if projected_LC is not None else self._sample(cells_LC, sizes_B2, points_RN2, batch.map_R)
        for block, (anchor_RM, layer) in enumerate(zip(anchors, layers, strict=True)):
            anchors_RM2 = _gather(points_RN2, anchor_RM)
            neighbor_RMK = nearest_points(points_RN2, anchors_RM2, self.options.neighbors[block])
            if features_RNC is None:
                assert projected_LC is not None
                values_RNC = self._sample(projected_LC, sizes_B2, points_RN2, batch.map_R)
                at_anchors_RMC = self._sample(cells_LC, sizes_B2, anchors_RM2, batch.map_R)
                features_RNC = self._join(
                    block, layer, values_RNC, points_RN2, at_anchors_RMC, anchors_RM2, neighbor_RMK
                )
            else:
                features_RNC = self.aggregate(block, features_RNC, points_RN2, anchor_RM, neighbor_RMK, layer=layer)
            points_RN2 = anchors_RM2
        assert features_RNC is not None, "there is at least one block"
        return features_RNC

    def _sample(self, cells_LC: Tensor, sizes_B2: Tensor, points_RN2: Tensor, map_R: Tensor) -> Tensor:
        # The official code samples at (y, x) where (x, y) is expected; the geometry of neighbors keeps (x, y).
        positions_RN2 = points_RN2.flip(-1) if self.options.official_xy_swap else points_RN2
        return sample_cells(cells_LC, sizes_B2, positions_RN2, map_R)

    @property
    def _aggregates(self) -> Any:
        return self.agg_projector_list

    def _fold(self, block: int) -> _Folded:
        """Multiply the two linear layers of a block into one.

        The first reads f_j - f_a, the second its result and f_a, with f = features and position of a point:
        W_u (A (f_j - f_a) + b) + W_a f_a + c = (W_u A) f_j + (W_a - W_u A) f_a + (W_u b + c).
        """
        difference: Any = self.diff_projector_list[block]
        layer = self._aggregates[block].net[0]
        of_difference, of_anchor = layer.weight[..., 0].chunk(2, dim=1)
        of_neighbor = of_difference @ difference.weight
        return _Folded(of_neighbor, of_anchor - of_neighbor, of_difference @ difference.bias + layer.bias)

    def _join(
        self,
        block: int,
        layer: _Folded,
        values_RNC: Tensor,
        points_RN2: Tensor,
        at_anchors_RMC: Tensor,
        anchors_RM2: Tensor,
        neighbor_RMK: Tensor,
    ) -> Tensor:
        """Add each anchor to its neighbors' projected values, activate, norm and pool: [R, M, C]."""
        width, norm = self.width, self._aggregates[block].norm
        rows = values_RNC + points_RN2.to(values_RNC.dtype) @ layer.of_neighbor[:, width:].T
        anchors_RMC = at_anchors_RMC @ layer.of_anchor[:, :width].T + layer.bias
        anchors_RMC = anchors_RMC + anchors_RM2.to(anchors_RMC.dtype) @ layer.of_anchor[:, width:].T
        first_R11 = torch.arange(len(rows), device=rows.device)[:, None, None] * rows.shape[1]
        index_PK = (neighbor_RMK + first_R11).flatten(0, 1)
        rows, anchors_PC = rows.flatten(0, 1), anchors_RMC.flatten(0, 1)
        pooled = []
        for start in range(0, max(1, len(index_PK)), step := max(1, _MAX_PAIR_FLOATS // (index_PK.shape[1] * width))):
            pairs_PKC = rows[index_PK[start : start + step]] + anchors_PC[start : start + step, None]
            # The norm comes after the activation, as in the official code.
            pairs_PKC = layer_norm(pairs_PKC.relu_(), norm)
            pooled.append(pairs_PKC.amax(dim=1) if self.options.pool == "max" else pairs_PKC.mean(dim=1))
        return torch.cat(pooled).view(*neighbor_RMK.shape[:2], width)


def _gather(values_RND: Tensor, index_RM: Tensor) -> Tensor:
    return values_RND.gather(1, index_RM[..., None].expand(-1, -1, values_RND.shape[-1]))


def _draw(points_RN2: Tensor, generator: torch.Generator) -> Tensor:
    regions, count = points_RN2.shape[:2]
    # Drawn on the CPU, so that a seed gives the same starts on every device.
    return torch.randint(0, count, (regions,), generator=generator).to(points_RN2.device)


def draw_official_points(mask_HW: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw the points [count, 2] of a mask as the official code does, with its order of random numbers.

    Raises:
        UserError: the mask is empty.
    """
    width, height = mask_HW.shape[1], mask_HW.shape[0]
    # Masks are indexed [x, y] there, so that pixels come column by column.
    pixels_P2 = mask_HW.T.nonzero() / torch.tensor([[width, height]])
    if len(pixels_P2) == 0:
        raise UserError(f"mask of {height} x {width} pixels: empty; expected at least one pixel")
    if len(pixels_P2) < count:
        repeats = torch.randint(0, len(pixels_P2), (count - len(pixels_P2),), generator=generator)
        return torch.cat([pixels_P2, pixels_P2[repeats]])
    return (
        pixels_P2 if len(pixels_P2) == count else pixels_P2[torch.randperm(len(pixels_P2), generator=generator)[:count]]
    )


REGION_ENCODER = RegionSampler
