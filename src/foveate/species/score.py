"""Scores of triples: head and relation become a query, whose product with a tail is the score.

A score is a class that `foveate.species.scores.SCORES` lists by the name that a recipe gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError

CHANNELS, KERNEL = 32, 3
DROPOUTS = (0.2, 0.2, 0.3)


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


class DistMult(Score):
    """Three-way product: s(h, r, o) = sum over k of h[k] r[k] o[k].

    Symmetric in head and tail: parent(a, b) and parent(b, a) have one score. Source: Yang et al. 2015 (arXiv
    1412.6575), section 3; the score of COSMO (arXiv 2401.00608).
    """

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        return heads_BD * relations_BD

    def fold(self, relation_D: Tensor, tails_ND: Tensor) -> Tensor:
        return relation_D * tails_ND


class ComplEx(Score):
    """Real part of the three-way product of complex numbers: s(h, r, o) = Re(sum over k of h[k] r[k] conj(o[k])).

    Not symmetric in h and o. The first half of a vector is its real part, the second its imaginary part. Source:
    Trouillon et al. 2016 (arXiv 1606.06357), equation 11. Not in the released code of COSMO.

    Raises:
        UserError: the dimension is odd.
    """

    def __init__(self, dim: int) -> None:
        if dim % 2:
            raise UserError(f"dim: 'complex' pairs real and imaginary parts (got {dim}); expected an even number")
        super().__init__(dim)

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        (real, imaginary), (r_real, r_imaginary) = heads_BD.chunk(2, dim=-1), relations_BD.chunk(2, dim=-1)
        product = (real * r_real - imaginary * r_imaginary, real * r_imaginary + imaginary * r_real)
        return torch.cat(product, dim=-1)

    def fold(self, relation_D: Tensor, tails_ND: Tensor) -> Tensor:
        # Re(h r conj(o)) = Re(h conj(conj(r) o)): the head's matrix is the query of the tail with the conjugate of r.
        real, imaginary = relation_D.chunk(2)
        return self.query(tails_ND, torch.cat([real, -imaginary]))


class ConvE(Score):
    """Head and relation as one small image, convolved and projected to the query.

    Both are reshaped to `rows` x dim / rows and stacked. Source: Dettmers et al. 2018 (arXiv 1707.01476), section 4;
    order of layers as in the released code of COSMO, without a bias of its own for each entity.

    Args:
        rows: of one vector's image; 20 for the paper's dimension of 200.
        dropouts: probabilities behind the input, the maps and the projection.

    Raises:
        UserError: the dimension does not divide into rows, or the image is smaller than the kernel.
    """

    is_linear = False
    # Batch statistics of one or two images would be noise; the released code drops such batches, too.
    drops_last = True

    def __init__(self, dim: int, *, rows: int = 20, dropouts: tuple[float, float, float] = DROPOUTS) -> None:
        super().__init__(dim)
        columns = dim // rows
        if dim % rows or columns < KERNEL or 2 * rows < KERNEL:
            raise UserError(
                f"dim: 'conve' reshapes vectors to {rows} rows (got {dim}); expected a multiple of {rows} from "
                f"{rows * KERNEL}, such as 200"
            )
        self.rows, self.columns, self.dropouts = rows, columns, dropouts
        self.conv1 = nn.Conv2d(1, CHANNELS, KERNEL)
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(1), nn.BatchNorm2d(CHANNELS), nn.BatchNorm1d(dim)
        self.fc = nn.Linear(CHANNELS * (2 * rows - KERNEL + 1) * (columns - KERNEL + 1), dim)

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        shape = (-1, 1, self.rows, self.columns)
        after_input, after_maps, after_projection = self.dropouts
        x = torch.cat([heads_BD.reshape(shape), relations_BD.reshape(shape)], dim=2)
        x = F.dropout(self.bn0(x), after_input, self.training)
        x = F.dropout2d(F.relu(self.bn1(self.conv1(x))), after_maps, self.training)
        x = F.dropout(self.fc(x.flatten(1)), after_projection, self.training)
        return F.relu(self.bn2(x))
