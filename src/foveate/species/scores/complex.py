"""ComplEx: s(h, r, o) = Re(sum over k of h[k] r[k] conj(o[k])), not symmetric in h and o.

The first half of a vector is its real part, the second its imaginary part. Source: Trouillon et al. 2016
(arXiv 1606.06357), equation 11. Not in the released code of COSMO.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.species.score import Score


class ComplEx(Score):
    """Real part of the three-way product of complex numbers.

    Raises:
        UserError: the dimension is odd.
    """

    def __init__(self, dim: int) -> None:
        if dim % 2:
            raise UserError(f"dim: 'complex' pairs real and imaginary parts (got {dim}); expected an even number")
        super().__init__(dim)

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        """See `Score.query`."""
        (real, imaginary), (r_real, r_imaginary) = heads_BD.chunk(2, dim=-1), relations_BD.chunk(2, dim=-1)
        product = (real * r_real - imaginary * r_imaginary, real * r_imaginary + imaginary * r_real)
        return torch.cat(product, dim=-1)

    def fold(self, relation_D: Tensor, tails_ND: Tensor) -> Tensor:
        """See `Score.fold`."""
        # Re(h r conj(o)) = Re(h conj(conj(r) o)): the head's matrix is the query of the tail with the conjugate of r.
        real, imaginary = relation_D.chunk(2)
        return self.query(tails_ND, torch.cat([real, -imaginary]))


SCORE = ComplEx
