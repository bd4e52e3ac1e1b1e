"""Connector `pooled`: blocks and an MLP on the full grid, then adaptive average pooling.

The C-Abstractor pools before its MLP, so that its tokens are the only ones that lie in the language model's space. Here
every patch lies there, and a visual token is the mean of its patches: regions, maps of phrases and boxes read the full
grid while the decoder reads a few tokens.
A deviation from MM1.5; the study `mllm` compares the two.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.vision.connectors import Connector
from foveate.vision.layers import layer_norm


class PooledOptions(Settings):
    """Options of the pooled connector."""

    side: int = Field(default=7, ge=1, description="rows and columns after pooling")
    depth: int = Field(default=1, ge=0, description="blocks before the MLP")


class _Block(nn.Module):
    """A residual block: pointwise, depthwise 3 x 3 and pointwise convolutions, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width, bias=False)
        self.ln1 = nn.LayerNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.ln2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.ln3 = nn.LayerNorm(width)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        y = F.silu(layer_norm(self.fc1(x_BHWD), self.ln1))
        y = self.depthwise(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.fc2(F.silu(layer_norm(y, self.ln2)))
        return F.silu(x_BHWD + layer_norm(y, self.ln3))


class PooledConnector(Connector):
    """Map the tokens of a grid to the language model's space, then pool them to side x side."""

    Options = PooledOptions

    def __init__(self, options: PooledOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        # Adaptive pooling to more cells than the grid has would repeat tokens without an error.
        if options.side > min(grid):
            raise UserError(
                f"connector 'pooled': side is larger than the grid (got {options.side}); expected at most {min(grid)}"
            )
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=options.side**2)
        self.side = options.side
        self.blocks = nn.ModuleList(_Block(in_width) for _ in range(options.depth))
        self.fc1 = nn.Linear(in_width, out_width)
        self.fc2 = nn.Linear(out_width, out_width)
        self.norm = nn.LayerNorm(out_width)

    def full(self, tokens_BLD: Tensor) -> Tensor:
        """Map tokens [B, L, D] to [B, L, E], without pooling."""
        self.check_tokens(tokens_BLD)
        x_BHWD = tokens_BLD.unflatten(1, self.grid)
        for block in self.blocks:
            x_BHWD = block(x_BHWD)
        return layer_norm(self.fc2(F.silu(self.fc1(x_BHWD))), self.norm).flatten(1, 2)

    def pool(self, full_BLE: Tensor) -> Tensor:
        """Pool tokens [B, L, E] of the full grid to [B, T, E], row by row."""
        map_BEHW = full_BLE.transpose(1, 2).unflatten(2, self.grid)
        return F.adaptive_avg_pool2d(map_BEHW, self.side).flatten(2).transpose(1, 2)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map the tokens of views [B, L, D] to [B, T, E]."""
        return self.pool(self.full(tokens_BLD))


CONNECTOR = PooledConnector
