"""Query points on a grid around the map, and the repulsion of a client's points there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.federated.embedding.training import max_repulsion, mean_repulsion, repulsion, squared_distance
from foveate.metrics.neighbors import blocks

STEP = 0.3
MARGIN = 0.5
MARGIN_SHARE = 0.1
DROPS = ("none", "farthest", "nearest")
# The public code's number; it equals its k, so the nearest were probably intended.
DROPPED = 7
_MAX_COUNT = 1e12


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


def official_grid(z_Nd: NDArray[np.floating], *, step: float = STEP) -> CoordinateGrid:
    """Grid of the public code for one client: around the box's center, to both sides as far as the box is wide.

    Its coordinates are computed in the dtype of z, as there; their number follows the map's width and has no bound.
    """
    low, high = z_Nd.min(axis=0), z_Nd.max(axis=0)
    center, reach = (low + high) / 2, 2 * ((high - low) / 2)
    axes = [np.arange(c - r, c + r + step, step) for c, r in zip(center, reach, strict=True)]
    return CoordinateGrid(tuple(axis.astype(np.float64) for axis in axes))


def own_grid(
    z_Nd: NDArray[np.floating],
    *,
    step: float = STEP,
    min_axis_points: int = 12,
    max_points: int = 2000,
    min_count: int = 1,
) -> CoordinateGrid:
    """Build the grid of `official_grid` with at least `min_axis_points` per axis and at most `max_points` in all."""
    box = bounding_box(z_Nd, min_count)
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
    cell = position.detach().floor().clamp(max=len(axis) - 2.0)
    return cell.long(), position - cell
