"""One client's training pass over its edges: a fresh Adam on the common encoder, no state between rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foveate.federated.embedding.graph import Neighborhood
from foveate.federated.embedding.objective import Losses, exact_losses, sampled_losses

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
