"""Query points on a grid around the map, and the repulsion of a client's points there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from foveate.federated.embedding.training import max_repulsion, mean_repulsion, repulsion, squared_distance
from foveate.federated.privacy import discrete_gaussian
from foveate.metrics.neighbors import blocks

STEP = 0.3
MARGIN = 0.5
MARGIN_SHARE = 0.1
DROPS = ("none", "farthest", "nearest")
# The public code's number; it equals its k, so the nearest were probably intended.
DROPPED = 7
_MAX_COUNT = 1e12
_POWERS = 2.0 ** np.arange(-1, 9)
THRESHOLDS = np.concatenate([-_POWERS[::-1], _POWERS])
"""Coordinates that the sides of a noisy box are taken from: powers of two, from 0.5 to 256 to either side."""
WITHIN = 1.0
"""Distance within which a value of a field needs points of its client: the width of the kernel."""


@dataclass(frozen=True)
class CoordinateGrid:
    """Ascending coordinates per axis; the points are their product, the first axis fastest."""

    axes: tuple[NDArray[np.float64], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def points_Gd(self) -> NDArray[np.float64]:
        """All points, [G, d], the first axis fastest."""
        # Reversed, because `ij` indexing lets the last axis run fastest.
        mesh = np.meshgrid(*reversed(self.axes), indexing="ij")
        return np.stack([axis.ravel() for axis in reversed(mesh)], axis=1)

    @property
    def centers_Gd(self) -> NDArray[np.float64]:
        """Middles of all cells."""
        return CoordinateGrid(tuple((axis[1:] + axis[:-1]) / 2 for axis in self.axes)).points_Gd

    @property
    def box_2d(self) -> NDArray[np.float64]:
        """Lowest and highest corner, [2, d]."""
        return np.array([[axis[0] for axis in self.axes], [axis[-1] for axis in self.axes]])

    def outside(self, z_Nd: Tensor) -> int:
        """Number of positions outside the box."""
        low, high = torch.from_numpy(self.box_2d).to(z_Nd)
        return int(((z_Nd < low) | (z_Nd > high)).any(dim=-1).sum())


def bounding_box(z_Nd: NDArray[np.floating], min_count: int = 1) -> NDArray[np.float64]:
    """Bounding box of map points, [2, d]: lowest, highest.

    Args:
        min_count: each side is the mean of so many outermost coordinates: with 1 a side *is* the position of a point.
    """
    count = min(min_count, len(z_Nd))
    ordered_Nd = np.sort(z_Nd, axis=0)
    return np.stack([ordered_Nd[:count].mean(axis=0), ordered_Nd[-count:].mean(axis=0)]).astype(np.float64)


def count_positions(z_Nd: NDArray[np.floating]) -> NDArray[np.int64]:
    """Positions between the `THRESHOLDS` of each axis, [d, len(THRESHOLDS) + 1].

    A position that moves leaves one count of each axis and joins another, which `box_change` bounds.
    """
    # NaN counts as the last: whatever a position is, it is in one count of each axis.
    bins_Nd = np.searchsorted(THRESHOLDS, z_Nd, side="right")
    return np.stack([np.bincount(bins_N, minlength=len(THRESHOLDS) + 1) for bins_N in bins_Nd.T])


def box_change(dimensions: int) -> float:
    """Largest Euclidean change of `count_positions` when one position is put anywhere else."""
    return math.sqrt(2 * dimensions)


def threshold_box(z_Nd: NDArray[np.floating], min_count: int = 1, *, sigma: float = 0.0) -> NDArray[np.float64]:
    """Box of map points, [2, d], read off their counts between `THRESHOLDS`, of which its sides are.

    Args:
        min_count: so many points or fewer may lie beyond a side.
        sigma: standard deviation of the noise on the counts; it is exact, of whole numbers
            (`privacy.discrete_gaussian`). The number of points is no secret.
    """
    points, counts_dB = len(z_Nd), count_positions(z_Nd)
    if sigma:
        counts_dB = counts_dB + discrete_gaussian(_exact(sigma), counts_dB.shape)
    return np.array([_read_sides(counts_B, points, sigma, min_count) for counts_B in counts_dB]).T


def _exact(sigma: float) -> Fraction:
    """Standard deviation as a fraction that is not below it, with a small denominator: the sampler computes with it."""
    return Fraction(math.ceil(sigma * 1024), 1024)


def _read_sides(counts_B: NDArray[np.int64], points: int, sigma: float, min_count: int) -> tuple[float, float]:
    """Lowest and highest threshold beyond which no more positions lie than `min_count`, or than noise explains."""
    bins, summed_T = len(counts_B), np.arange(1, len(counts_B))
    # Two estimates of the positions below a threshold: the counts below it, and all points without those above it.
    # Each has the noise of the counts that it adds up, so the weights are the numbers of the other's.
    below_T = counts_B.cumsum()[:-1]
    from_above_T = points - counts_B[::-1].cumsum()[:-1][::-1]
    below_T = (below_T * (bins - summed_T) + from_above_T * summed_T) / bins
    deviation_T = sigma * np.sqrt(summed_T * (bins - summed_T) / bins)
    # Counts below a threshold rise from 0 to all points; noise that falls is none of them.
    below_T = IsotonicRegression(y_min=0, y_max=points).fit_transform(summed_T, below_T)
    # A quarter of all points at most: where noise drowns everything, the sides are near the quartiles.
    few_T = np.minimum(np.maximum(min_count, 3 * deviation_T), points / 4)

    def first_above(beyond_T: NDArray[np.floating], limit_T: NDArray[np.floating]) -> int:
        """Number of thresholds from the outside on that have few positions beyond them."""
        many_T = beyond_T > limit_T
        return int(many_T.argmax()) if many_T.any() else len(many_T)

    low = THRESHOLDS[max(first_above(below_T, few_T) - 1, 0)]
    high = THRESHOLDS[::-1][max(first_above((points - below_T)[::-1], few_T[::-1]) - 1, 0)]
    return float(min(low, high)), float(max(low, high))


def official_grid(z_Nd: NDArray[np.floating], *, step: float = STEP) -> CoordinateGrid:
    """Grid of the public code for one client: around the box's center, to both sides as far as the box is wide.

    Its coordinates are computed in the dtype of z, as there; their number follows the map's width and has no bound.
    """
    low, high = z_Nd.min(axis=0), z_Nd.max(axis=0)
    center, reach = (low + high) / 2, 2 * ((high - low) / 2)
    axes = [np.arange(c - r, c + r + step, step) for c, r in zip(center, reach, strict=True)]
    return CoordinateGrid(tuple(axis.astype(np.float64) for axis in axes))


def own_grid(
    box_2d: NDArray[np.floating], *, step: float = STEP, min_axis_points: int = 12, max_points: int = 2000
) -> CoordinateGrid:
    """Build the grid of `official_grid` around a box: `min_axis_points` per axis at least, `max_points` in all."""
    box = np.asarray(box_2d)
    # A map of a single position has no width; a tiny one keeps the step of the grid above 0.
    center, reach = box.mean(axis=0), np.maximum(box[1] - box[0], 1e-6)
    # Weights of a hostile server can make the map infinitely wide, where shrinking would never end.
    counts = np.clip(np.ceil(2 * reach / step) + 1, min_axis_points, _MAX_COUNT)
    # Shrunk step by step on all axes alike, so that the queries keep the shape of the map.
    while counts.prod() > max_points and (counts > min_axis_points).any():
        counts = np.maximum(np.floor(counts * 0.95), min_axis_points)
    return _even(center - reach, center + reach, counts.astype(int))


def union_grid(
    boxes_M2d: NDArray[np.floating], *, step: float = STEP, min_axis_points: int = 12, max_axis_points: int = 28
) -> CoordinateGrid:
    """Grid for all clients: around the union of their boxes, with a margin of 10 % and 0.5; bounded per axis."""
    low, high = boxes_M2d[:, 0].min(axis=0), boxes_M2d[:, 1].max(axis=0)
    # The map grows during the local training that follows; outside of the grid a surrogate keeps the value at its edge.
    margin = MARGIN_SHARE * (high - low) + MARGIN
    low, high = low - margin, high + margin
    counts = np.clip(np.ceil((high - low) / step) + 1, min_axis_points, max_axis_points)
    return _even(low, high, counts.astype(int))


def scatter(box_2d: NDArray[np.floating], count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw query points uniformly in a box, [count, d]: for maps of three dimensions, where grids grow too large."""
    return generator.uniform(box_2d[0], box_2d[1], (count, box_2d.shape[1]))


def grid_between(box_2d: NDArray[np.floating], counts_d: NDArray[np.integer]) -> CoordinateGrid:
    """Grid from corner to corner with so many points per axis."""
    return _even(box_2d[0], box_2d[1], counts_d)


def _even(low_d: NDArray[np.floating], high_d: NDArray[np.floating], counts_d: NDArray[np.integer]) -> CoordinateGrid:
    ends = zip(low_d, high_d, counts_d, strict=True)
    return CoordinateGrid(tuple(np.linspace(low, high, int(count)) for low, high, count in ends))


def targets(
    queries_Gd: Tensor, z_Nd: Tensor, *, drop: str = "none", dropped: int = DROPPED, kernel: str = "shifted"
) -> Tensor:
    """Mean repulsion of this client's points on a point at each query: [G], in (0, `max_repulsion`].

    Args:
        drop: "farthest" leaves out the `dropped` farthest points of each query, as the public code does; "nearest" the
            nearest, which was probably intended. With no more points than that nothing is left out.
    """
    field_G = torch.empty(len(queries_Gd), dtype=queries_Gd.dtype, device=queries_Gd.device)
    # Work in blocks: the table of all distances of queries and points need not fit into memory.
    for part in blocks(len(queries_Gd), len(z_Nd) * queries_Gd.shape[1]):
        if drop == "none" or len(z_Nd) <= dropped:
            field_G[part] = mean_repulsion(queries_Gd[part], z_Nd, kernel=kernel)
            continue
        squared = squared_distance(queries_Gd[part].unsqueeze(1), z_Nd.unsqueeze(0)).sort(dim=1).values
        rest = squared[:, :-dropped] if drop == "farthest" else squared[:, dropped:]
        field_G[part] = repulsion(rest, kernel=kernel).mean(dim=1)
    return field_G


def max_change(points: int, *, drop: str = "none", dropped: int = DROPPED, kernel: str = "shifted") -> float:
    """Largest change of one value of `targets` when one of a client's points is put anywhere else.

    A sum of the k largest (or smallest) of n values is the largest (smallest) of all sums of k: one value that changes
    by a changes it by a at most. So dropping points leaves the sum's bound, and divides it by the points that are left.
    """
    left = points if drop == "none" or points <= dropped else points - dropped
    return max_repulsion(kernel) / left


def max_norm_change(
    queries: int,
    points: int,
    *,
    grid: CoordinateGrid | None = None,
    drop: str = "none",
    kernel: str = "shifted",
) -> float:
    """Largest Euclidean change of `targets` at so many queries when one of the points is put anywhere else.

    Every value changes by `max_change` at most, so all together by sqrt(queries) times as much. On an even grid less:
    a position is near few of its points. The k-th nearest coordinate of an axis of step h is at least k h / 2 away, so
    the squares of one position's repulsions add up to S at most, the sum over k and l of the squared repulsion at
    (k h / 2, l h / 2); and the point takes S away in one place and adds S in another.

    Args:
        grid: an even grid, of which the queries are all points.
    """
    largest = math.sqrt(queries) * max_change(points, drop=drop, kernel=kernel)
    # What a dropped point leaves behind is another point, anywhere: the sum of squares would count that one, too.
    if grid is None or drop != "none":
        return largest
    total = np.zeros(1)
    for axis in grid.axes:
        step = abs(float(axis[-1] - axis[0])) / max(len(axis) - 1, 1)
        total = np.add.outer((np.arange(len(axis)) * step / 2) ** 2, total).ravel()
    near = repulsion(torch.from_numpy(total), kernel=kernel)
    return min(largest, math.sqrt(2 * float(near.square().sum())) / points)


def has_enough_points(queries_Gd: Tensor, z_Nd: Tensor, min_count: int, *, within: float = WITHIN) -> Tensor:
    """Whether at least `min_count` positions lie within a distance of each query, [G]."""
    enough_G = torch.empty(len(queries_Gd), dtype=torch.bool, device=queries_Gd.device)
    for part in blocks(len(queries_Gd), len(z_Nd) * queries_Gd.shape[1]):
        squared = squared_distance(queries_Gd[part].unsqueeze(1), z_Nd.unsqueeze(0))
        enough_G[part] = (squared <= within**2).sum(dim=1) >= min_count
    return enough_G


def interpolate(field_G: Tensor, grid: CoordinateGrid, z_Nd: Tensor) -> Tensor:
    """Value of a field at each z, [N], linear along every axis between the grid's points; beyond it that of its edge.

    Gradients flow into z.
    """
    cells = [_cell(z_Nd[:, axis], points) for axis, points in enumerate(grid.axes)]
    # The first axis is the fastest, so its neighbor is the next value, and that of an axis is a whole slice later.
    strides = np.cumprod([1, *grid.shape[:-1]]).tolist()
    corners = [torch.stack([cell * stride for (cell, _), stride in zip(cells, strides, strict=True)]).sum(dim=0)]
    for stride in reversed(strides):
        corners = [corner + offset for corner in corners for offset in (0, stride)]
    values = [field_G[corner] for corner in corners]
    # Each axis halves the values, the first one first, until one is left.
    for _, share in cells:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [before * (1 - share) + after * share for before, after in pairs]
    return values[0]


def _cell(coordinate_N: Tensor, axis: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Cell of each coordinate, and the position inside it from 0 to 1."""
    low, step = float(axis[0]), float(axis[-1] - axis[0]) / (len(axis) - 1)
    position = ((coordinate_N - low) / step).clamp(0.0, len(axis) - 1.0)
    # At the last point the cell before it counts, so that there is always a next point to interpolate with.
    # A position that is NaN stays so, and must not become an index that fails.
    cell = position.detach().nan_to_num().floor().clamp(max=len(axis) - 2.0)
    return cell.long(), position - cell
