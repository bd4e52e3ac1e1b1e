"""Connectors: from an image encoder's tokens to a language model's. A kind is a module that defines CONNECTOR."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.plugins import load_plugin, module_names
from foveate.core.recipes import Settings, validate
from foveate.vision.registry import seeded


class Connector(nn.Module, ABC):
    """Map the tokens of a view [B, L, D] to those that the language model reads [B, T, E].

    Attributes:
        in_width: D. out_width: E. grid: rows and columns, L = rows x columns. num_tokens: T.
    """

    Options: type[Settings] = Settings

    def __init__(self, *, in_width: int, out_width: int, grid: tuple[int, int], num_tokens: int) -> None:
        super().__init__()
        self.in_width, self.out_width, self.grid, self.num_tokens = in_width, out_width, grid, num_tokens

    def check_tokens(self, tokens_BLD: Tensor) -> None:
        """Raise UserError unless the tokens are of this grid and width."""
        rows, columns = self.grid
        expected = (rows * columns, self.in_width)
        if tokens_BLD.dim() != 3 or tokens_BLD.shape[1:] != expected:
            raise UserError(
                f"tokens: shape {tuple(tokens_BLD.shape)} does not fit the connector; expected [B, {expected[0]}, "
                f"{expected[1]}], the {rows} x {columns} patches of a view without class tokens"
            )

    @abstractmethod
    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map tokens, row by row and without class tokens, to [B, T, E]; the input is left as it is."""


def connector_kinds() -> list[str]:
    """List the kinds of connectors."""
    return module_names(__name__)


def build_connector(
    kind: str, options: Mapping[str, Any], *, in_width: int, out_width: int, grid: tuple[int, int], seed: int = 0
) -> Connector:
    """Build an untrained connector.

    Args:
        kind: one of `connector_kinds()`.
        options: fields of the kind's `Options`.
        in_width: D, of the encoder's tokens. out_width: E, of the language model's embeddings.
        grid: rows and columns of the encoder's tokens of one view.

    Raises:
        UserError: unknown kind or option, a wrong value, or a grid that the kind cannot divide.
    """
    builder = load_plugin(__name__, kind, "CONNECTOR", label="connector")
    checked = validate(builder.Options, dict(options), where=f"connector '{kind}'")
    with seeded(seed):
        return builder(checked, in_width=in_width, out_width=out_width, grid=grid)
