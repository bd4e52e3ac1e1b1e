"""One client's pass over its edges: a fresh Adam on the common encoder, nothing kept from round to round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foveate.federated.embedding.graph import Neighborhood
from foveate.federated.embedding.objective import Losses, exact_losses, sampled_losses

Foreign = Callable[[Tensor], Tensor]
MOST_POINTS_EXACT = 5000
# The exact repulsion weighs as much as that of the usual number of samples.
EXACT_WEIGHT = 5


@dataclass(frozen=True)
class PassSettings:
    """How a client trains in one round.

    Attributes:
        rate: learning rate. epochs: passes over the edges. batch: edges of a step.
        negatives: samples per edge; 0 = all points of the client, exactly.
        clip: gradients are cut to [-clip, clip], number by number.
        share: rho of the client, where it feels others.
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
    """Means over the steps of a pass: the three losses (foreign None without others), and the number of steps."""

    attraction: float
    repulsion: float
    foreign: float | None
    steps: int


def optimizer_of(network: nn.Module, rate: float) -> torch.optim.Adam:
    """The optimizer of one pass."""
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
    """One update on a batch of edges; every distinct point is encoded once.

    Args:
        negatives_EB: rows of points; None = exact local repulsion. foreign: what the others do to a place.
        anchor: the parameters at the round's start, for FedProx.
    """
    network.train()
    if negatives_EB is None:
        z_Nd = network(points_ND)
        foreign_E = _felt(z_Nd, heads_E, foreign)
        losses = exact_losses(z_Nd, heads_E, tails_E, foreign_E=foreign_E, kernel=settings.kernel)
    else:
        named = torch.cat([heads_E, tails_E, negatives_EB.reshape(-1)])
        rows, places = torch.unique(named, return_inverse=True)
        z_Nd = network(points_ND[rows])
        heads, tails, rest = places.split([len(heads_E), len(tails_E), negatives_EB.numel()])
        foreign_E = _felt(z_Nd, heads, foreign)
        losses = sampled_losses(
            z_Nd, heads, tails, rest.view_as(negatives_EB), foreign_E=foreign_E, kernel=settings.kernel
        )
    optimizer.zero_grad(set_to_none=True)
    losses.total(negatives=settings.negatives or EXACT_WEIGHT, share=settings.share).backward()
    if anchor is not None:
        for parameter, start in zip(network.parameters(), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=settings.proximal)
    nn.utils.clip_grad_value_(network.parameters(), settings.clip)
    optimizer.step()
    return losses


def _felt(z_Nd: Tensor, heads_E: Tensor, foreign: Foreign | None) -> Tensor | None:
    """What each head feels by the others, computed once for each distinct head."""
    if foreign is None:
        return None
    distinct, places = torch.unique(heads_E, return_inverse=True)
    return foreign(z_Nd[distinct])[places]


def train_pass(
    network: nn.Module,
    around: Neighborhood,
    settings: PassSettings,
    generator: np.random.Generator,
    *,
    foreign: Foreign | None = None,
) -> PassReport:
    """Trains the network in place on all edges of the client, in shuffled batches."""
    first = next(network.parameters())
    points_ND = torch.from_numpy(np.ascontiguousarray(around.points_ND)).to(first)
    heads_E, tails_E = (torch.from_numpy(one).to(first.device) for one in (around.heads_E, around.tails_E))
    if not len(heads_E):
        return PassReport(0.0, 0.0, None if foreign is None else 0.0, 0)
    anchor = [one.detach().clone() for one in network.parameters()] if settings.proximal else None
    optimizer = optimizer_of(network, settings.rate)
    sums = torch.zeros(3, dtype=torch.float64)
    steps = 0
    for _ in range(settings.epochs):
        order = torch.from_numpy(generator.permutation(len(heads_E))).to(first.device)
        drawn = _negatives(len(points_ND), len(heads_E), settings.negatives, generator)
        for start in range(0, len(order), settings.batch):
            rows = order[start : start + settings.batch]
            losses = step(
                network,
                optimizer,
                points_ND,
                heads_E[rows],
                tails_E[rows],
                None if drawn is None else drawn[start : start + settings.batch].to(first.device),
                settings,
                foreign=foreign,
                anchor=anchor,
            )
            parts = (losses.attraction, losses.repulsion, losses.foreign)
            sums += torch.stack([torch.zeros(()) if one is None else one.detach().double().cpu() for one in parts])
            steps += 1
    means = (sums / steps).tolist()
    return PassReport(means[0], means[1], None if foreign is None else means[2], steps)


def _negatives(points: int, edges: int, count: int, generator: np.random.Generator) -> Tensor | None:
    """Uniform with replacement over all points, the edge's own ones not excluded; None = exact."""
    return torch.from_numpy(generator.integers(0, points, (edges, count))) if count else None
