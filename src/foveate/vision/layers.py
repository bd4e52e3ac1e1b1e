"""Layers of small trainable towers: a pre-norm transformer layer, and fixed sinusoidal encodings of points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError, choose


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Apply `norm` in the dtype of x, also under autocast, which would write float32: twice the memory traffic.

    The statistics are taken in float32 inside the kernel for half-precision inputs. A norm with hooks is called as the
    module that it is.
    """
    hooked = norm._forward_hooks or norm._forward_pre_hooks
    if hooked or not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float32:
        return norm(x)
    with torch.autocast(device_type=x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def as_computed(x: Tensor) -> Tensor:
    """Cast float32 once to the dtype that autocast would cast it to at each product; unchanged without autocast."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype in (torch.float32, torch.float16):
        return x.to(torch.get_autocast_dtype(kind))
    return x


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): exact GELU, biases on, no dropout.

    Args:
        width: D. heads: must divide D. mlp_ratio: hidden width of the MLP over D.
    """

    def __init__(self, width: int, *, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(
                f"heads: the width {width} cannot be split over them (got {heads}); expected a divisor of {width}"
            )
        self.heads = heads
        self.ln1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, int(width * mlp_ratio))
        self.fc2 = nn.Linear(int(width * mlp_ratio), width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Run the layer on tokens [B, L, D]; same shape."""
        batch, length, width = x_BLD.shape
        qkv = self.qkv(layer_norm(x_BLD, self.ln1)).view(batch, length, 3, self.heads, width // self.heads)
        # [3, B, heads, L, D / heads]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x_BLD = x_BLD + self.out(attended)
        return x_BLD + self.fc2(F.gelu(self.fc1(layer_norm(x_BLD, self.ln2))))


# Fixed sinusoidal encodings of points in the unit square (CLOC, arXiv 2410.02746, the Prompter's box corners).


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
    # In the layout "timescale", dividing by n - 1 makes the last frequency exactly 1 / temperature.
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
