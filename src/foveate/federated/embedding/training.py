"""One client's training in a round: its points and edges, the contrastive loss, and a pass over the edges.

z [., d] are map positions, d2 their squared distance, the estimator is e = 1 / (2 + d2) (kernel "shifted"; it is
contrastive-ne's negative sampling with partition 1, and the public FedNE code's) or 1 / (1 + d2) ("cauchy"). The loss
has attraction, local repulsion, and repulsion by other clients. Each pass has a fresh Adam on the common encoder: no
state is kept between rounds.

FedNE: arXiv 2409.11509; contrastive neighbor embeddings: arXiv 2206.01816.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from foveate.metrics.neighbors import nearest

Points = NDArray[np.floating]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Neighborhood:
    """Points [N, D] and directed edges head -> tail between their rows, [E] each."""

    points_ND: Points
    heads_E: Indices
    tails_E: Indices


def mix(points_ND: Points, partners_N: Indices, lambdas_N: Points) -> Points:
    """Mix points: lambda x + (1 - lambda) x', with x' the partner, a neighbor of x; [N, D]."""
    weight_N1 = lambdas_N[:, None].astype(points_ND.dtype)
    return weight_N1 * points_ND + (1 - weight_N1) * points_ND[partners_N]


def edges(points_ND: Points, k: int, *, keep_self_edges: bool = False) -> tuple[Indices, Indices]:
    """Edges from every point to its k nearest others, [N k] heads and tails; fewer where there are not k others.

    Args:
        keep_self_edges: as the public code, which asks scikit-learn for k + 1 neighbors and drops the first, whoever
            it is: a point with an exact copy may keep itself as a neighbor.
    """
    k = min(k, len(points_ND) - 1)
    if k < 1:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if keep_self_edges:
        # With exact copies scikit-learn may list a copy first and the point itself second.
        index = NearestNeighbors(n_neighbors=k + 1).fit(points_ND)
        tails_Nk = np.asarray(index.kneighbors(points_ND, return_distance=False))[:, 1:].astype(np.int64)
    else:
        tails_Nk = nearest(points_ND, k)
    return np.repeat(np.arange(len(points_ND)), k), tails_Nk.ravel()


def neighborhood(
    points_ND: Points,
    k: int,
    generator: np.random.Generator | None,
    *,
    neighbors_Nk: Indices | None = None,
    beta: float = 0.2,
    keep_self_edges: bool = False,
) -> Neighborhood:
    """Neighborhood that a client trains on in one round.

    Args:
        generator: draws the mixing of this round; None = no mixing, the points as they are.
        neighbors_Nk: k nearest others of each point, if already known.
    """
    if generator is None or len(points_ND) < 2:
        # Without mixing the graph never changes: the neighbors computed once serve every round.
        if neighbors_Nk is not None and not keep_self_edges:
            heads_E = np.repeat(np.arange(len(points_ND)), neighbors_Nk.shape[1])
            return Neighborhood(points_ND, heads_E, neighbors_Nk.ravel())
        return Neighborhood(points_ND, *edges(points_ND, k, keep_self_edges=keep_self_edges))
    if neighbors_Nk is None:
        neighbors_Nk = nearest(points_ND, min(k, len(points_ND) - 1))
    # Beta(0.2, 0.2) has its mass near 0 and 1: most mixtures are close to one of their two points.
    lambdas_N = generator.beta(beta, beta, len(points_ND))
    picks_N = generator.integers(0, neighbors_Nk.shape[1], len(points_ND))
    partners_N = neighbors_Nk[np.arange(len(points_ND)), picks_N]
    # Mixtures join the originals, and neighbors are searched among all of them.
    stacked = np.concatenate([points_ND, mix(points_ND, partners_N, lambdas_N)])
    return Neighborhood(stacked, *edges(stacked, k, keep_self_edges=keep_self_edges))


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


Foreign = Callable[[Tensor], Tensor]
# The exact repulsion needs a table of all pairs of points; 5,000 points take 100 MB in float32 for each tensor of it.
MAX_EXACT_POINTS = 5000
# The exact repulsion weighs as much as the default number of samples, so that a learning rate fits both.
EXACT_WEIGHT = 5


@dataclass(frozen=True)
class PassSettings:
    """Settings of a client's training in one round.

    Attributes:
        rate: learning rate.
        epochs: passes over the edges.
        batch: edges of a step.
        negatives: samples per edge; 0 = all points of the client, exactly.
        clip: gradients are cut to [-clip, clip], number by number.
        share: rho of the client, where others repel its points.
        proximal: FedProx's mu: (mu / 2) |w - w of the round's start|^2 is added to the loss.
    """

    rate: float
    epochs: int = 1
    batch: int = 448
    negatives: int = 5
    kernel: str = "shifted"
    clip: float = 4.0
    share: float = 1.0
    proximal: float = 0.0


@dataclass(frozen=True)
class PassReport:
    """Means over the steps of a pass: the three losses (`foreign` is None without others), and the number of steps."""

    attraction: float
    repulsion: float
    foreign: float | None
    steps: int


def make_optimizer(network: nn.Module, rate: float) -> torch.optim.Adam:
    """Adam, fused: a step of a small network is mostly the overhead of one call per parameter."""
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=True)


def step(
    network: nn.Module,
    optimizer: torch.optim.Adam,
    points_ND: Tensor,
    heads_E: Tensor,
    tails_E: Tensor,
    negatives_EB: Tensor | None,
    settings: PassSettings,
    *,
    foreign: Foreign | None = None,
    anchor: list[Tensor] | None = None,
) -> Losses:
    """Take one step on a batch of edges.

    Args:
        negatives_EB: rows of points; None = exact local repulsion.
        foreign: repulsion of the other clients at a position.
        anchor: the parameters at the round's start, for FedProx.
    """
    network.train()
    if negatives_EB is None:
        z_Nd = network(points_ND)
        foreign_E = _foreign_repulsion(z_Nd, heads_E, foreign)
        losses = exact_losses(z_Nd, heads_E, tails_E, foreign_E=foreign_E, kernel=settings.kernel)
    else:
        named = torch.cat([heads_E, tails_E, negatives_EB.reshape(-1)])
        # Every distinct point is encoded once, however many edges and samples refer to it.
        rows, indices = torch.unique(named, return_inverse=True)
        z_Nd = network(points_ND[rows])
        heads, tails, rest = indices.split([len(heads_E), len(tails_E), negatives_EB.numel()])
        foreign_E = _foreign_repulsion(z_Nd, heads, foreign)
        losses = sampled_losses(
            z_Nd, heads, tails, rest.view_as(negatives_EB), foreign_E=foreign_E, kernel=settings.kernel
        )
    optimizer.zero_grad(set_to_none=True)
    losses.total(negatives=settings.negatives or EXACT_WEIGHT, share=settings.share).backward()
    if anchor is not None:
        for parameter, start in zip(network.parameters(), anchor, strict=True):
            if parameter.grad is not None:
                # The gradient of (mu / 2) |w - w_start|^2, added directly: no graph over all weights is built for it.
                parameter.grad.add_(parameter.detach() - start, alpha=settings.proximal)
    nn.utils.clip_grad_value_(network.parameters(), settings.clip)
    optimizer.step()
    return losses


def _foreign_repulsion(z_Nd: Tensor, heads_E: Tensor, foreign: Foreign | None) -> Tensor | None:
    """Repulsion from other clients, computed once per unique head."""
    if foreign is None:
        return None
    distinct, indices = torch.unique(heads_E, return_inverse=True)
    return foreign(z_Nd[distinct])[indices]


def train_pass(
    network: nn.Module,
    around: Neighborhood,
    settings: PassSettings,
    generator: np.random.Generator,
    *,
    foreign: Foreign | None = None,
) -> PassReport:
    """Train the network in place on all edges of the client, in shuffled batches."""
    first = next(network.parameters())
    points_ND = torch.from_numpy(np.ascontiguousarray(around.points_ND)).to(first)
    heads_E, tails_E = (torch.from_numpy(rows).to(first.device) for rows in (around.heads_E, around.tails_E))
    # A client of one point has no edges: its weights go back unchanged, and count with their share.
    if not len(heads_E):
        return PassReport(0.0, 0.0, None if foreign is None else 0.0, 0)
    anchor = [parameter.detach().clone() for parameter in network.parameters()] if settings.proximal else None
    # Anew in every round: moments of the last one belong to weights that averaging has replaced.
    optimizer = make_optimizer(network, settings.rate)
    # Losses of thousands of steps are added up in float64, because float32 would lose digits.
    sums = torch.zeros(3, dtype=torch.float64)
    steps = 0
    for _ in range(settings.epochs):
        order = torch.from_numpy(generator.permutation(len(heads_E))).to(first.device)
        # Drawn for the whole epoch at once, from NumPy's stream: the same samples on every device.
        negatives = _draw_negatives(len(points_ND), len(heads_E), settings.negatives, generator)
        for start in range(0, len(order), settings.batch):
            rows = order[start : start + settings.batch]
            losses = step(
                network,
                optimizer,
                points_ND,
                heads_E[rows],
                tails_E[rows],
                None if negatives is None else negatives[start : start + settings.batch].to(first.device),
                settings,
                foreign=foreign,
                anchor=anchor,
            )
            parts = (losses.attraction, losses.repulsion, losses.foreign)
            sums += torch.stack([torch.zeros(()) if part is None else part.detach().double().cpu() for part in parts])
            steps += 1
    means = (sums / steps).tolist()
    return PassReport(means[0], means[1], None if foreign is None else means[2], steps)


def _draw_negatives(points: int, edges: int, count: int, generator: np.random.Generator) -> Tensor | None:
    """Draw uniformly with replacement over all points, the edge's own ones included; None = exact."""
    return torch.from_numpy(generator.integers(0, points, (edges, count))) if count else None
