"""Pixel shuffle: patches of a square side by side in one wide token, then a linear layer.

The names and the order inside a token are those of transformers' `Idefics3Connector`.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.vision.connectors import Connector


class PixelShuffleOptions(Settings):
    """Options of pixel shuffle."""

    factor: int = Field(default=2, ge=1, description="side of the square of patches that becomes one token")


class _Projection(nn.Module):
    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PixelShuffleConnector(Connector):
    """One token for each square of `factor` x `factor` patches; a linear layer without bias.

    Source: Idefics3 (arXiv 2408.12637, section 3.1).
    """

    Options = PixelShuffleOptions

    def __init__(self, options: PixelShuffleOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        rows, columns = grid
        factor = options.factor
        if rows % factor or columns % factor:
            raise UserError(
                f"factor: must divide the grid of {rows} x {columns} patches (got {factor}); expected a common divisor"
            )
        num_tokens = rows * columns // factor**2
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=num_tokens)
        self.factor = factor
        self.modality_projection = _Projection(in_width * factor**2, out_width)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        (rows, columns), factor = self.grid, self.factor
        x = tokens_BLD.view(len(tokens_BLD), rows // factor, factor, columns // factor, factor, self.in_width)
        # Inside a token: row by row of the square, as Idefics3's two reshapes leave them.
        return self.modality_projection(x.transpose(2, 3).reshape(len(x), self.num_tokens, -1))


CONNECTOR = PixelShuffleConnector
