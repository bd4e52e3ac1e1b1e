"""Layers: a pre-norm transformer layer for small trainable towers (arXiv 2010.11929, equations 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError


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
