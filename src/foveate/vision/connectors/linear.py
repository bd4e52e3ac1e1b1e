"""One linear layer of each token, as in the first LLaVA (arXiv 2304.08485, section 4.1)."""

from __future__ import annotations

from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.vision.connectors import Connector


class LinearConnector(Connector):
    """One token for each patch."""

    def __init__(self, options: Settings, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=grid[0] * grid[1])
        self.linear = nn.Linear(in_width, out_width)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        return self.linear(tokens_BLD)


CONNECTOR = LinearConnector
