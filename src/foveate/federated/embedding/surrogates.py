"""Surrogates: a small network per client that predicts how strongly its points repel a map position.

It is fitted by its owner from the frozen global encoder, sent to all others, and evaluated there: gradients flow into
the position, never into the surrogate. FedNE, arXiv 2409.11509; all details are those of the public code, except that
positions are encoded in units of the box and targets are standardized (`to_box_units`, `fit_surrogate`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.federated.embedding.networks import Weights, copy_weights, linear
from foveate.federated.embedding.training import max_repulsion
from foveate.federated.messages import MessageError
from foveate.metrics.neighbors import blocks

# Octaves of the encoding. In the public code the finest wave is 2 pi / 8 = 0.8 long whatever the map's width: on a map
# ten wide, 28 queries per axis alias it. In units of the box it is half the box long, five steps or more.
LEVELS = 4
# Encoded positions reach this far from 0 in a box: the coarsest wave is then four boxes long, and values grow or fall
# over a box instead of turning once.
_REACH = math.pi / 4
# A box without width would divide by 0; honest ones have a margin.
_MIN_WIDTH = 1e-6
# Shorter gradients have no direction.
_MIN_LENGTH = 1e-30


def encode_positions(z_Nd: Tensor, *, levels: int = LEVELS) -> Tensor:
    """[z, sin(2^l z), cos(2^l z)] for l = 0 .. levels-1, frequency-major: [N, d (1 + 2 levels)]."""
    if not levels:
        return z_Nd
    scaled = torch.cat([2.0**level * z_Nd for level in range(levels)], dim=1)
    return torch.cat([z_Nd, scaled.sin(), scaled.cos()], dim=1)


def to_box_units(z_Nd: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scale positions such that the box [low, high] reaches from -pi/4 to pi/4 on every axis.

    The waves of `encode_positions` then widen with the map, as the steps of its queries do.
    """
    return (z_Nd - (low + high) / 2) * (2 * _REACH / (high - low).clamp_min(_MIN_WIDTH))


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
    box_2d: NDArray[np.floating] | None = None,
) -> SurrogateFit:
    """Fit by Adam on the squared error, from new weights; return the weights of the best check.

    The error of the held-out queries is checked at even epochs and the last one; after `patience` checks without a gain
    it ends. With held_out = 0 all epochs are trained and the last weights are returned.

    Args:
        box_2d: around the queries. Positions are encoded in its units, and the fit starts from targets of mean 0 and
            deviation 1; the weights that are returned give the repulsion itself. None = neither (the public code).
    """
    network = SurrogateNetwork(architecture, queries_Gd.shape[1], generator, queries_Gd.dtype)
    center, spread = 0.0, 1.0
    if box_2d is not None:
        queries_Gd = to_box_units(queries_Gd, *torch.from_numpy(np.asarray(box_2d)).to(queries_Gd))
        # Repulsions differ by a few hundredths, the outputs of new weights by ten times that: without this the few
        # epochs end before the fit has leveled those waves, and they outweigh the gradient of what is imitated.
        center, spread = float(targets_G.mean()), float(targets_G.std(correction=0)) or 1.0
        targets_G = (targets_G - center) / spread
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
        # The last layer is linear, so it takes the targets' scale: whoever evaluates the weights need not know it.
        last = network.layers[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(spread)
        last.bias.mul_(spread).add_(center)
    return SurrogateFit(
        copy_weights(network),
        r_squared(predicted, targets_G),
        r_squared(predicted[checked], targets_G[checked]),
        epoch + 1,
    )


Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FieldQuality:
    """How well a field is imitated at some positions.

    Attributes:
        r2: of the values.
        gradient_cosine: mean cosine of both gradients, 1 = the same direction everywhere.
        gradient_ratio: mean length of the imitation's gradient, in units of the true one's.
    """

    r2: float
    gradient_cosine: float
    gradient_ratio: float


def compare_fields(imitation: Field, truth: Field, positions_Kd: Tensor, *, points: int = 1) -> FieldQuality:
    """Compare values and gradients of two fields at the positions; a training takes nothing but the gradients.

    Args:
        points: number of points whose distances the fields compute, which bounds the positions of one block.
    """
    imitated_K, imitated_Kd = _with_gradients(imitation, positions_Kd, points)
    true_K, true_Kd = _with_gradients(truth, positions_Kd, points)
    length = float(true_Kd.norm(dim=1).mean())
    return FieldQuality(
        r_squared(imitated_K, true_K),
        float(F.cosine_similarity(imitated_Kd, true_Kd, dim=1, eps=_MIN_LENGTH).mean()),
        float(imitated_Kd.norm(dim=1).mean()) / max(length, _MIN_LENGTH),
    )


def _with_gradients(field: Field, positions_Kd: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Return the values [K] of a field at the positions and its gradients [K, d] there."""
    values, gradients = [], []
    # Work in blocks: a gradient keeps all distances that its values were computed from.
    for part in blocks(len(positions_Kd), points * positions_Kd.shape[1]):
        z = positions_Kd[part].detach().requires_grad_()
        value = field(z)
        gradients.append(torch.autograd.grad(value.sum(), z)[0])
        values.append(value.detach())
    return torch.cat(values), torch.cat(gradients)


class SurrogateSum:
    """Sum of share * surrogate over clients, evaluated for all of them at once; nothing in it is trained.

    Outside the box that a surrogate was fitted on its value is clamped to the range of what it imitates.

    Args:
        surrogates_M: their weights, as `SurrogateFit.weights` holds them.
        shares_M: rho of each.
        boxes_M2d: the boxes, in whose units positions are encoded; None = positions as they are, and never clamp (the
            public code).
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
        device: str | torch.device = "cpu",
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
        # All networks have one architecture: a batched product evaluates them at once. [M, N, inputs].
        hidden = self._encode(z_Nd)
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

    def _encode(self, z_Nd: Tensor) -> Tensor:
        """Encode positions for each network, [M, N, inputs]."""
        if self._boxes is None:
            # One copy of the positions for all M networks: `expand` costs no memory.
            return encode_positions(z_Nd, levels=self._levels).expand(len(self._shares_M), -1, -1)
        # On the common grid all boxes are equal, and sines of all positions are the larger part of an evaluation.
        boxes = self._boxes[:1] if (self._boxes == self._boxes[:1]).all() else self._boxes
        scaled = [encode_positions(to_box_units(z_Nd, *box), levels=self._levels) for box in boxes]
        return torch.stack(scaled).expand(len(self._shares_M), -1, -1)

    def outside(self, z_Nd: Tensor) -> int:
        """Number of positions outside the box of at least one surrogate."""
        if self._boxes is None:
            return 0
        low, high = self._boxes[:, 0].unsqueeze(1), self._boxes[:, 1].unsqueeze(1)
        return int(((z_Nd < low) | (z_Nd > high)).any(dim=-1).any(dim=0).sum())


def unpack_surrogate(vector_S: NDArray[Any], architecture: Architecture, dimensions: int) -> dict[str, NDArray[Any]]:
    """Split the vector that was sent into a surrogate's arrays by name.

    Raises:
        MessageError: for another length.
    """
    with torch.device("meta"):  # shapes only: no memory, no random numbers
        network = SurrogateNetwork(architecture, dimensions, torch.Generator())
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if vector_S.shape != (sum(sizes),):
        raise MessageError(f"a surrogate must have {sum(sizes)} weights (got {vector_S.size})")
    parts = np.split(vector_S, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
