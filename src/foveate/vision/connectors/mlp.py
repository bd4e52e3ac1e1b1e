"""MLP of each token, LLaVA's `mlp2x_gelu`; the names are those of transformers' `LlavaMultiModalProjector`."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.vision.connectors import Connector


class MlpOptions(Settings):
    """Options of the MLP connector."""

    bias: bool = Field(default=True, description="biases in both linear layers")


class MlpConnector(Connector):
    """Linear, exact GELU, linear; one token for each patch.

    Source: LLaVA-1.5 (arXiv 2310.03744, section 3.3).
    """

    Options = MlpOptions

    def __init__(self, options: MlpOptions, *, in_width: int, out_width: int, grid: tuple[int, int]) -> None:
        super().__init__(in_width=in_width, out_width=out_width, grid=grid, num_tokens=grid[0] * grid[1])
        self.linear_1 = nn.Linear(in_width, out_width, bias=options.bias)
        self.linear_2 = nn.Linear(out_width, out_width, bias=options.bias)

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        self.check_tokens(tokens_BLD)
        return self.linear_2(F.gelu(self.linear_1(tokens_BLD)))


CONNECTOR = MlpConnector
