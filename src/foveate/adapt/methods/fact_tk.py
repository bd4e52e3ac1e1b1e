"""FacT in Tucker form: U, V and one core tensor C (r x r x r) common to all, a column of P for each r x r core.

Jie and Deng 2023, arXiv 2212.03145, section 3.3. The cores of a block are the slices of C x_3 P. ViT-B/16:
1,536 r + 144 r + r^3 parameters. Starts as the identity: V 0; C and P Xavier. Merges: W += s V T U.

The released code flattens the m slices of fc1 and of fc2 from (r, r, m) to (r, m r) row by row, so the m matrices that
act are interleaved columns rather than slices; kept here, because published numbers and weights come from it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import Method
from foveate.adapt.fact import FactAdapter, FactSettings


class FactTkSettings(FactSettings):
    """Rank, scale and dropout."""

    method: Literal["fact_tk"] = "fact_tk"


class FactTkAdapter(FactAdapter[FactTkSettings]):
    """One core tensor, one matrix of factors."""

    def build_cores(self, rank: int, blocks: int) -> None:
        """Create C [r, r, r] and P [r, (4 + 2 m) blocks]."""
        # Matrices of a block: q, k, v, proj, and m parts each of fc1 and fc2. With m = 4 the 12 of the paper.
        self.per_block = 4 + 2 * self.ratio
        self.c = nn.Parameter(torch.empty(rank, rank, rank))
        self.p = nn.Parameter(torch.empty(rank, self.per_block * blocks))
        nn.init.xavier_uniform_(self.c)
        nn.init.xavier_uniform_(self.p)

    def cores(self, index: int) -> dict[str, Tensor]:
        """Return slices 0 to 3 of C x_3 P as q, k, v, proj (transposed), the next m as fc1, the last m as fc2."""
        # [r, r, r] x [r, 4 + 2 m]: the product over the last axis of C is C x_3 P.
        core = self.c @ self.p[:, index * self.per_block : (index + 1) * self.per_block]
        rank, m = len(core), self.ratio
        # Transposed: the released code multiplies row vectors, x S; `F.linear` expects the weight S^T.
        square = {name: core[:, :, number].T for number, name in enumerate(("q", "k", "v", "proj"))}
        fc1 = core[:, :, 4 : 4 + m].reshape(rank, m * rank).T
        return {**square, "fc1": fc1, "fc2": core[:, :, 4 + m :].reshape(rank, m * rank)}


METHOD = Method(
    FactTkSettings,
    FactTkAdapter,
    paper="arXiv 2212.03145",
    location="beside qkv, proj, fc1, fc2",
    mergeable=True,
    needs=("blocks", "projections", "square", "proj", "mlps", "one_width"),
)
