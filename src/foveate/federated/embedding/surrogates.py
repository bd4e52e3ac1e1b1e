"""Surrogates: a small network per client that predicts how strongly its points repel a map position.

It is fitted by its owner from the frozen global encoder, sent to all others, and evaluated there: gradients flow into
the position, never into the surrogate. FedNE, arXiv 2409.11509; all details are those of the public code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.federated.embedding.networks import Weights, copy_weights, linear
from foveate.federated.embedding.training import max_repulsion

# Octaves of the encoding. The finest wave is 2 pi / 8 = 0.8 long, more than two steps of a grid of 0.3; another octave
# would alias on it.
LEVELS = 4


def encode_positions(z_Nd: Tensor, *, levels: int = LEVELS) -> Tensor:
    """[z, sin(2^l z), cos(2^l z)] for l = 0 .. levels-1, frequency-major: [N, d (1 + 2 levels)]."""
    if not levels:
        return z_Nd
    scaled = torch.cat([2.0**level * z_Nd for level in range(levels)], dim=1)
    return torch.cat([z_Nd, scaled.sin(), scaled.cos()], dim=1)


@dataclass(frozen=True)
class Architecture:
    """Widths of the hidden layers, and the number of frequencies that encode positions (0: none)."""

    hidden: tuple[int, ...] = (100, 100)
    levels: int = LEVELS

    def inputs(self, dimensions: int) -> int:
        """Number of inputs of the first layer."""
        return dimensions * (1 + 2 * self.levels)


# `network64`: the surrogate that a secondary source ascribes to the paper, one hidden layer on the bare position.
ARCHITECTURES = {"network": Architecture(), "network64": Architecture((64,), levels=0)}


class SurrogateNetwork(nn.Module):
    """18-100-100-1 with ReLU for a plane map, 12,101 parameters, by default."""

    def __init__(
        self,
        architecture: Architecture,
        dimensions: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.levels = architecture.levels
        widths = (architecture.inputs(dimensions), *architecture.hidden, 1)
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nn.ModuleList(linear(inputs, outputs, generator, dtype) for inputs, outputs in pairs)

    def forward(self, z_Nd: Tensor) -> Tensor:
        """Repulsion at each position, [N]."""
        return self.read(encode_positions(z_Nd, levels=self.levels))

    def read(self, encoded_NI: Tensor) -> Tensor:
        """Repulsion at encoded positions, [N]."""
        # Apart from `forward`, so that a fit encodes its queries once and not in every epoch.
        hidden = encoded_NI
        for layer in self.layers[:-1]:
            hidden = F.relu(layer(hidden))
        return self.layers[-1](hidden)[:, 0]


@dataclass(frozen=True)
class FitSettings:
    """Settings of a surrogate's fit."""

    # As in the public code, whose warm start for later rounds (rate 1e-4, 8 epochs) is never reached.
    epochs: int = 40
    batch: int = 128
    rate: float = 1e-3
    clip: float = 1.0
    held_out: float = 0.1
    check_every: int = 2
    patience: int = 4


@dataclass(frozen=True)
class SurrogateFit:
    """A fitted surrogate's weights; R2 on all queries, and on the held-out ones (NaN without any)."""

    weights: Weights
    r2: float
    r2_held_out: float
    epochs: int


def r_squared(predicted_N: Tensor, truth_N: Tensor) -> float:
    """1 - squared error / variance; 0 for a constant truth that was not met exactly, NaN for no values."""
    if not len(truth_N):
        return float("nan")
    error = float((predicted_N - truth_N).square().sum())
    spread = float((truth_N - truth_N.mean()).square().sum())
    return 1.0 - error / spread if spread > 0 else float(error == 0)


def r_squared_of_noisy(noisy_G: Tensor, sigma: float, error: float) -> float:
    """Estimate R2 against exact values when only noisy ones are known.

    `error` is the mean squared error of the prediction against the exact values. Their variance is that of the noisy
    values minus sigma^2. The result is 0 if nothing of the variance is left.
    """
    # In float64, because the two variances may be nearly equal.
    variance = float(noisy_G.double().var(correction=0)) - sigma**2
    return 1.0 - error / variance if variance > 0 else 0.0


def fit_surrogate(
    queries_Gd: Tensor,
    targets_G: Tensor,
    generator: torch.Generator,
    *,
    architecture: Architecture = ARCHITECTURES["network"],
    settings: FitSettings = FitSettings(),
) -> SurrogateFit:
    """Fit by Adam on the squared error, from new weights; return the weights of the best check.

    The error of the held-out queries is checked at even epochs and the last one; after `patience` checks without a gain
    it ends. With held_out = 0 all epochs are trained and the last weights are returned.
    """
    network = SurrogateNetwork(architecture, queries_Gd.shape[1], generator, queries_Gd.dtype)
    encoded_GI = encode_positions(queries_Gd, levels=architecture.levels)
    order = torch.randperm(len(queries_Gd), generator=generator)
    # A random part of the grid, not its edge: the fit must hold between the queries.
    checked = order[: int(settings.held_out * len(order))]
    fitted = order[len(checked) :]
    # Fused: the network is so small that the overhead of one call per parameter would dominate.
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.rate, foreach=False, fused=True)
    best, best_weights, waited, epoch = math.inf, None, 0, 0
    for epoch in range(settings.epochs):
        for rows in fitted[torch.randperm(len(fitted), generator=generator)].split(settings.batch):
            loss = (network.read(encoded_GI[rows]) - targets_G[rows]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
        if not len(checked) or (epoch % settings.check_every and epoch != settings.epochs - 1):
            continue
        with torch.no_grad():
            error = float((network.read(encoded_GI[checked]) - targets_G[checked]).square().mean())
        if error < best:
            best, best_weights, waited = error, copy.deepcopy(network.state_dict()), 0
        else:
            waited += 1
            if waited >= settings.patience:
                break
    # Take the weights of the best check, not of the last: the fit may have begun to follow the noise of its batches.
    if best_weights is not None:
        network.load_state_dict(best_weights)
    with torch.no_grad():
        predicted = network.read(encoded_GI)
    return SurrogateFit(
        copy_weights(network),
        r_squared(predicted, targets_G),
        r_squared(predicted[checked], targets_G[checked]),
        epoch + 1,
    )


class SurrogateSum:
    """Sum of share * surrogate over clients, evaluated for all of them at once; nothing in it is trained.

    Outside the box that a surrogate was fitted on its value is clamped to the range of what it imitates.

    Args:
        surrogates_M: their weights, as `SurrogateFit.weights` holds them.
        shares_M: rho of each.
        boxes_M2d: the boxes; None = never clamp (the public code).
        kernel: of the repulsion that is imitated.
    """

    def __init__(
        self,
        surrogates_M: Sequence[Mapping[str, NDArray[np.generic]]],
        shares_M: Sequence[float],
        *,
        levels: int = LEVELS,
        boxes_M2d: NDArray[np.floating] | None = None,
        kernel: str = "shifted",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        # Each layer has two arrays, weight and bias.
        depth = len(surrogates_M[0]) // 2
        stacked = [
            [np.stack([weights[f"layers.{index}.{part}"] for weights in surrogates_M]) for part in ("weight", "bias")]
            for index in range(depth)
        ]
        self._layers = [[torch.from_numpy(array).to(device, dtype) for array in pair] for pair in stacked]
        self._shares_M = torch.tensor(shares_M, dtype=dtype, device=device)
        self._boxes = None if boxes_M2d is None else torch.tensor(np.asarray(boxes_M2d), dtype=dtype, device=device)
        self._levels, self._max_repulsion = levels, max_repulsion(kernel)

    def __call__(self, z_Nd: Tensor) -> Tensor:
        """Weighted sum at each position, [N]."""
        # All networks have one architecture: a batched product evaluates them at once.
        # One copy of the positions for all M networks: `expand` costs no memory. [M, N, inputs].
        hidden = encode_positions(z_Nd, levels=self._levels).expand(len(self._shares_M), -1, -1)
        for index, (weight_Moi, bias_Mo) in enumerate(self._layers):
            hidden = torch.baddbmm(bias_Mo.unsqueeze(1), hidden, weight_Moi.transpose(1, 2))
            if index < len(self._layers) - 1:
                hidden = F.relu(hidden)
        value_MN = hidden[..., 0]
        if self._boxes is not None:
            low, high = self._boxes[:, 0].unsqueeze(1), self._boxes[:, 1].unsqueeze(1)
            beyond_MN = ((z_Nd < low) | (z_Nd > high)).any(dim=-1)
            # A network extrapolates without bounds; outside of its box its value is clamped to what a repulsion can be.
            value_MN = torch.where(beyond_MN, value_MN.clamp(0.0, self._max_repulsion), value_MN)
        return self._shares_M @ value_MN

    def outside(self, z_Nd: Tensor) -> int:
        """Number of positions outside the box of at least one surrogate."""
        if self._boxes is None:
            return 0
        low, high = self._boxes[:, 0].unsqueeze(1), self._boxes[:, 1].unsqueeze(1)
        return int(((z_Nd < low) | (z_Nd > high)).any(dim=-1).any(dim=0).sum())
