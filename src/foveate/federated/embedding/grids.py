"""Where a surrogate is asked: query points on a grid around the map, and what the client's points repel there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.federated.embedding.objective import mean_repulsion, most_repulsion, repulsion, squared_distance
from foveate.metrics.neighbors import blocks

STEP = 0.3
MARGIN = 0.5
MARGIN_SHARE = 0.1
DROPS = ("none", "farthest", "nearest")
DROPPED = 7


@dataclass(frozen=True)
class Grid:
    """Ascending coordinates per axis; the points are their product, the first axis fastest."""

    axes: tuple[NDArray[np.float64], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def points_Gd(self) -> NDArray[np.float64]:
        """All points, [G, d], the first axis fastest."""
        mesh = np.meshgrid(*reversed(self.axes), indexing="ij")
        return np.stack([one.ravel() for one in reversed(mesh)], axis=1)

    @property
    def centers_Gd(self) -> NDArray[np.float64]:
        """The middles of all cells."""
        return Grid(tuple((axis[1:] + axis[:-1]) / 2 for axis in self.axes)).points_Gd

    @property
    def box_2d(self) -> NDArray[np.float64]:
        """Lowest and highest corner, [2, d]."""
        return np.array([[axis[0] for axis in self.axes], [axis[-1] for axis in self.axes]])


def box_of(z_Nd: NDArray[np.floating]) -> NDArray[np.float64]:
    """The bounding box of map points, [2, d]: lowest, highest."""
    return np.stack([z_Nd.min(axis=0), z_Nd.max(axis=0)]).astype(np.float64)


def official_grid(z_Nd: NDArray[np.floating], *, step: float = STEP) -> Grid:
    """The public code's grid of a client: around the box's center, to both sides as far as the box is wide.

    Its coordinates are computed in the dtype of z, as there; their number follows the map's width and has no bound.
    """
    low, high = z_Nd.min(axis=0), z_Nd.max(axis=0)
    center, reach = (low + high) / 2, 2 * ((high - low) / 2)
    axes = [np.arange(c - r, c + r + step, step) for c, r in zip(center, reach, strict=True)]
    return Grid(tuple(axis.astype(np.float64) for axis in axes))


def own_grid(z_Nd: NDArray[np.floating], *, step: float = STEP, fewest: int = 12, max_points: int = 2000) -> Grid:
    """As `official_grid`, with at least `fewest` points per axis and at most `max_points` in all."""
    box = box_of(z_Nd)
    center, reach = box.mean(axis=0), np.maximum(box[1] - box[0], 1e-6)
    counts = np.maximum(np.ceil(2 * reach / step) + 1, fewest)
    while counts.prod() > max_points and (counts > fewest).any():
        counts = np.maximum(np.floor(counts * 0.95), fewest)
    return _even(center - reach, center + reach, counts.astype(int))


def union_grid(boxes_M2d: NDArray[np.floating], *, step: float = STEP, fewest: int = 12, most: int = 28) -> Grid:
    """One grid for all clients: around the union of their boxes, with a margin of 10 % and 0.5; bounded per axis."""
    low, high = boxes_M2d[:, 0].min(axis=0), boxes_M2d[:, 1].max(axis=0)
    margin = MARGIN_SHARE * (high - low) + MARGIN
    low, high = low - margin, high + margin
    counts = np.clip(np.ceil((high - low) / step) + 1, fewest, most)
    return _even(low, high, counts.astype(int))


def scattered(box_2d: NDArray[np.floating], count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Query points drawn evenly in a box, [count, d]: for maps of three dimensions."""
    return generator.uniform(box_2d[0], box_2d[1], (count, box_2d.shape[1]))


def between(box_2d: NDArray[np.floating], counts_d: NDArray[np.integer]) -> Grid:
    """A grid from corner to corner with so many points per axis."""
    return _even(box_2d[0], box_2d[1], counts_d)


def _even(low_d: NDArray[np.floating], high_d: NDArray[np.floating], counts_d: NDArray[np.integer]) -> Grid:
    ends = zip(low_d, high_d, counts_d, strict=True)
    return Grid(tuple(np.linspace(low, high, int(count)) for low, high, count in ends))


def targets(
    queries_Gd: Tensor, z_Nd: Tensor, *, drop: str = "none", dropped: int = DROPPED, kernel: str = "shifted"
) -> Tensor:
    """What a point at each query would be repelled by this client's points, in the mean: [G], in (0, `most_repulsion`].

    Args:
        drop: "farthest" leaves out the `dropped` farthest points of each query, as the public code does; "nearest" the
            nearest, which was probably meant. With no more points than that nothing is left out.
    """
    found = torch.empty(len(queries_Gd), dtype=queries_Gd.dtype, device=queries_Gd.device)
    for part in blocks(len(queries_Gd), len(z_Nd) * queries_Gd.shape[1]):
        if drop == "none" or len(z_Nd) <= dropped:
            found[part] = mean_repulsion(queries_Gd[part], z_Nd, kernel=kernel)
            continue
        squared = squared_distance(queries_Gd[part].unsqueeze(1), z_Nd.unsqueeze(0)).sort(dim=1).values
        kept = squared[:, :-dropped] if drop == "farthest" else squared[:, dropped:]
        found[part] = repulsion(kept, kernel=kernel).mean(dim=1)
    return found


def most_moved(points: int, *, drop: str = "none", dropped: int = DROPPED, kernel: str = "shifted") -> float:
    """By how much one of a client's points, put anywhere else, moves one value of `targets` at most.

    A sum of the k largest (or smallest) of n values is the largest (smallest) of all sums of k: one value that changes
    by a changes it by a at most. So dropping points leaves the sum's bound, and divides it by the points that are left.
    """
    left = points if drop == "none" or points <= dropped else points - dropped
    return most_repulsion(kernel) / left


def interpolate(field_G: Tensor, grid: Grid, z_Nd: Tensor) -> Tensor:
    """The field's value at each z, [N], bilinear between the points of a plane grid; beyond it that of its edge.

    Gradients flow into z.
    """
    columns, rows = grid.shape
    table = field_G.reshape(rows, columns)
    across, right = _cell(z_Nd[:, 0], grid.axes[0])
    up, top = _cell(z_Nd[:, 1], grid.axes[1])
    lower = table[up, across] * (1 - right) + table[up, across + 1] * right
    upper = table[up + 1, across] * (1 - right) + table[up + 1, across + 1] * right
    return lower * (1 - top) + upper * top


def _cell(coordinate_N: Tensor, axis: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """The cell that holds each coordinate, and how far in it lies, 0 to 1."""
    low, step = float(axis[0]), float(axis[-1] - axis[0]) / (len(axis) - 1)
    place = ((coordinate_N - low) / step).clamp(0.0, len(axis) - 1.0)
    cell = place.detach().floor().clamp(max=len(axis) - 2.0)
    return cell.long(), place - cell
