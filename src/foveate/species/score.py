"""Score interface: head and relation become a query, whose product with a tail is the score."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from foveate.core.errors import UserError


class Score(nn.Module, ABC):
    """A score s(h, r, o) = query(h, r) . o, so that all candidates of a batch are one matrix product.

    Attributes:
        is_linear: in the head, so that it folds.
        drops_last: whether training leaves out the last, smaller batch of a pass.
    """

    is_linear = True
    drops_last = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        """Return the vectors [B, D] whose product with tails [N, D] is the score."""

    def forward(self, heads_BD: Tensor, relations_BD: Tensor, tails_ND: Tensor) -> Tensor:
        """Return the scores [B, N] of every tail."""
        return self.query(heads_BD, relations_BD) @ tails_ND.T

    def fold(self, relation_D: Tensor, tails_ND: Tensor) -> Tensor:
        """Return the matrix [N, D] whose product with a head is its score with every tail.

        Raises:
            UserError: the score is not linear in the head.
        """
        raise UserError(f"score '{type(self).__name__.lower()}' is not linear in the image; it has no folded head")
