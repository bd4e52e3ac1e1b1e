"""The contrastive neighbor-embedding loss of one client: attraction, local repulsion, repulsion by other clients.

z [., d] are map positions, d2 their squared distance, the estimator is e = 1 / (2 + d2) (kernel "shifted"; it is
contrastive-ne's negative sampling with partition 1, and the public FedNE code's) or 1 / (1 + d2) ("cauchy").
FedNE: arXiv 2409.11509; contrastive neighbor embeddings: arXiv 2206.01816.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["shifted", "cauchy"]
KERNELS: dict[str, float] = {"shifted": 2.0, "cauchy": 1.0}
MIN_PROBABILITY = 1e-4
"""Clamp of probabilities before the logarithm, which is infinite at 0."""


def estimate(squared: Tensor, *, kernel: str = "shifted") -> Tensor:
    """Probability e that a pair at this squared distance are neighbors."""
    return 1.0 / (KERNELS[kernel] + squared)


def squared_distance(a_Nd: Tensor, b_Nd: Tensor) -> Tensor:
    """Squared distances of paired rows; leading dimensions are kept."""
    return (a_Nd - b_Nd).square().sum(dim=-1)


def attraction(squared_E: Tensor, *, kernel: str = "shifted") -> Tensor:
    """-log e of neighbors, with e at least 1e-4: farther away there is no attraction."""
    return -estimate(squared_E, kernel=kernel).clamp(MIN_PROBABILITY, 1.0).log()


def repulsion(squared: Tensor, *, kernel: str = "shifted") -> Tensor:
    """-log(1 - e) of pairs that are not neighbors, see `max_repulsion`."""
    return -(1.0 - estimate(squared, kernel=kernel)).clamp(MIN_PROBABILITY, 1.0).log()


def max_repulsion(kernel: str = "shifted") -> float:
    """Repulsion of two coinciding points: log 2 with the kernel "shifted", -log 1e-4 with "cauchy".

    >>> round(max_repulsion("shifted"), 4), round(max_repulsion("cauchy"), 4)
    (0.6931, 9.2103)
    """
    return -math.log(max(1.0 - 1.0 / KERNELS[kernel], MIN_PROBABILITY))


@dataclass(frozen=True)
class Losses:
    """Means over edges, as tensors: attraction a, local repulsion r, repulsion s by the other clients (or None)."""

    attraction: Tensor
    repulsion: Tensor
    foreign: Tensor | None = None

    def total(self, *, negatives: int, share: float = 1.0) -> Tensor:
        """mean a + negatives (rho mean r + mean s); without other clients rho = 1, as the public code has it.

        Args:
            share: rho, the client's share of all points, where the term s is there.
        """
        if self.foreign is None:
            return self.attraction + negatives * self.repulsion
        # The local mean counts by the client's share; `foreign` is weighted by the others' shares already, so all
        # shares add up to 1.
        return self.attraction + negatives * (share * self.repulsion + self.foreign)


def sampled_losses(
    z_Nd: Tensor,
    heads_E: Tensor,
    tails_E: Tensor,
    negatives_EB: Tensor,
    *,
    foreign_E: Tensor | None = None,
    kernel: str = "shifted",
) -> Losses:
    """Losses of edges (head, tail) with B sampled negatives each; indices are rows of z.

    Args:
        foreign_E: repulsion from other clients on each head, already weighted by their shares.
    """
    pulled = attraction(squared_distance(z_Nd[heads_E], z_Nd[tails_E]), kernel=kernel)
    # [E, 1, d] against [E, B, d]: every negative of an edge repels the edge's head.
    pushed = repulsion(squared_distance(z_Nd[heads_E].unsqueeze(1), z_Nd[negatives_EB]), kernel=kernel)
    return Losses(pulled.mean(), pushed.mean(), None if foreign_E is None else foreign_E.mean())


def exact_losses(
    z_Nd: Tensor, heads_E: Tensor, tails_E: Tensor, *, foreign_E: Tensor | None = None, kernel: str = "shifted"
) -> Losses:
    """Compute `sampled_losses` with the mean over *all* rows of z for the local repulsion: no sampling noise."""
    pulled = attraction(squared_distance(z_Nd[heads_E], z_Nd[tails_E]), kernel=kernel)
    distinct, count = torch.unique(heads_E, return_counts=True)
    # Heads repeat, once per neighbor: each is computed once and weighted by how often it occurs.
    pushed_U = mean_repulsion(z_Nd[distinct], z_Nd, kernel=kernel)
    weight_U = count.to(z_Nd.dtype) / len(heads_E)
    return Losses(pulled.mean(), weight_U @ pushed_U, None if foreign_E is None else foreign_E.mean())


def mean_repulsion(z_Nd: Tensor, others_Md: Tensor, *, kernel: str = "shifted") -> Tensor:
    """Mean repulsion of all others on each z, [N]."""
    # [N, 1, d] against [1, M, d]: a table of all pairs, [N, M].
    return repulsion(squared_distance(z_Nd.unsqueeze(1), others_Md.unsqueeze(0)), kernel=kernel).mean(dim=1)
