"""Fixed sinusoidal encodings of points in the unit square (CLOC, arXiv 2410.02746, the Prompter's box corners)."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.errors import UserError, choose

LAYOUTS = ("blocked", "interleaved", "timescale")


def encode_points(
    points_R2: Tensor,
    *,
    width: int,
    coordinate_scale: float = 100.0,
    temperature: float = 10_000.0,
    layout: str = "blocked",
) -> Tensor:
    """Encode points by sinusoids of their scaled coordinates.

    With n = width / 4 and frequencies w_i = temperature^(-i/n):
    `blocked` gives [sin(a x w) | cos(a x w) | sin(a y w) | cos(a y w)];
    `interleaved` alternates sine and cosine for x, then for y;
    `timescale` is blocked with w_i = temperature^(-i/(n-1)), so that the slowest one is 1 / temperature itself.

    Args:
        points_R2: (x, y) in [0, 1], any leading shape.
        width: of the result, divisible by 4.
        coordinate_scale: a; about the size of the grid or more, since unscaled coordinates give almost constants.
        temperature: ratio of the fastest to the slowest frequency.
        layout: order of the columns, see above.

    Returns:
        [..., width] in the dtype of `points_R2` (at least float32).

    Raises:
        UserError: if `width` is not divisible by 4 or the layout is unknown.
    """
    choose(layout, LAYOUTS, "sinusoid layout")
    if width % 4 or width < 4:
        raise UserError(f"width of a sinusoid: not a multiple of 4 (got {width})")
    if points_R2.dtype not in (torch.float32, torch.float64):
        points_R2 = points_R2.float()
    n = width // 4
    # Computed on the CPU where the device has no double precision.
    compute_device = "cpu" if points_R2.device.type == "mps" else points_R2.device
    index_n = torch.arange(n, dtype=torch.float64, device=compute_device)
    exponent_n = index_n / (max(n - 1, 1) if layout == "timescale" else n)
    # The frequencies are computed in double precision: at scale 100 a float32 power is off by 1e-5 radians.
    frequency_n = (float(temperature) ** -exponent_n).to(points_R2.dtype).to(points_R2.device)
    angle_R2n = (coordinate_scale * points_R2)[..., None] * frequency_n
    waves = (angle_R2n.sin(), angle_R2n.cos())
    if layout == "interleaved":
        return torch.stack(waves, dim=-1).flatten(-3)
    return torch.stack(waves, dim=-2).flatten(-3)


def patch_centers(
    grid: tuple[int, int], *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the centers (x, y) in [0, 1] of a grid of patches, row by row: [rows * columns, 2]."""
    rows, columns = grid
    y = (torch.arange(rows, device=device, dtype=dtype) + 0.5) / rows
    x = (torch.arange(columns, device=device, dtype=dtype) + 0.5) / columns
    return torch.stack((x.repeat(rows), y.repeat_interleave(columns)), dim=-1)
