"""Two attacks of a curious server on what FedNE sends, to run on your own data before taking part.

They are simple on purpose: what they find is a lower bound. Finding nothing does not mean that nothing leaks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.federated.embedding.client import build_encoder
from foveate.federated.embedding.grids import Grid
from foveate.federated.embedding.networks import load_flat
from foveate.federated.embedding.objective import mean_repulsion
from foveate.federated.embedding.options import EmbeddingOptions


def unused_features(
    before_P: NDArray[np.floating], after_P: NDArray[np.floating], options: EmbeddingOptions, features: int
) -> NDArray[np.bool_]:
    """Return which features are 0 in every point of the client, by its weights before and after training: [features].

    Where a feature is 0 throughout, the first layer's weights on it have no gradient and come back unchanged, bit for
    bit. On images these are the pixels that nobody at the client ever inked; on counts, the kinds that nobody has.
    """
    network = build_encoder(options, features)
    # The first parameter is the first layer's weight [hidden, features].
    first = next(network.parameters())
    load_flat(network, before_P)
    before = first.detach().clone()
    load_flat(network, after_P)
    return (first.detach() == before).all(dim=0).numpy()


def positions_from_field(
    field_G: NDArray[np.floating],
    grid: Grid,
    points: int,
    generator: np.random.Generator,
    *,
    kernel: str = "shifted",
    starts: int = 6,
    steps: int = 300,
) -> NDArray[np.float64]:
    """Map positions [points, d] whose field is nearest to the one that was sent; the best of several random starts.

    The number of points is known: every client reports it.
    """
    queries = torch.from_numpy(grid.points_Gd)
    targets = torch.from_numpy(np.asarray(field_G, dtype=np.float64))
    box = grid.box_2d
    best, best_error = np.zeros((points, box.shape[1])), np.inf
    for _ in range(starts):
        z_Nd = torch.from_numpy(generator.uniform(box[0], box[1], (points, box.shape[1]))).requires_grad_()
        error = _descend(z_Nd, queries, targets, steps, kernel, reach=float((box[1] - box[0]).max()))
        if error < best_error:
            best, best_error = z_Nd.detach().numpy().copy(), error
    return best


def _descend(z_Nd: Tensor, queries: Tensor, targets: Tensor, steps: int, kernel: str, *, reach: float) -> float:
    # Steps in proportion to the map: the same 300 steps cross a small map and a large one.
    optimizer = torch.optim.Adam([z_Nd], lr=0.02 * reach)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (mean_repulsion(queries, z_Nd, kernel=kernel) - targets).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()
