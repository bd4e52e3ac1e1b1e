"""Numeric networks: places and hours as vectors of the graph, and how their inputs are scaled."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError

LAYERS = 3
PlaceInput = Literal["raw", "standardized", "sphere"]
HourInput = Literal["raw", "scaled", "circular"]
Start = Literal["official", "sane"]
# Numbers that the network takes of a place or an hour.
PLACE_WIDTHS: dict[str, int] = {"raw": 2, "standardized": 2, "sphere": 3}
HOUR_WIDTHS: dict[str, int] = {"raw": 1, "scaled": 1, "circular": 2}
_MIN_DEVIATION = 1e-9  # degrees; distinct places differ by more than 1e-7


def mlp_widths(inputs: int, outputs: int, layers: int = LAYERS) -> list[int]:
    """Return the output width of each layer, growing in equal steps to `outputs`.

    Source: the released code of COSMO, class MLP: step = floor((inputs - outputs) / layers), widths
    outputs + i step for i = layers - 1 ... 0.

    Raises:
        UserError: a width would not be positive.
    """
    # Python's floor of a negative number: the steps are rounded up, which makes the first layer narrower.
    step = (inputs - outputs) // layers
    widths = [outputs + index * step for index in reversed(range(layers))]
    if min(widths) <= 0:
        raise UserError(
            f"dim: numeric networks of {layers} layers from {inputs} to {outputs} would have widths {widths}; "
            "expected a larger dim"
        )
    return widths


class NumericMLP(nn.Module):
    """Linear layers with a PReLU behind each, the last one included."""

    def __init__(self, inputs: int, outputs: int, layers: int = LAYERS, *, start: Start = "sane") -> None:
        super().__init__()
        widths = [inputs, *mlp_widths(inputs, outputs, layers)]
        self.mlp = nn.Sequential()
        for before, after in zip(widths, widths[1:], strict=False):
            # The released code has Dropout(0) between the two, which has no effect.
            self.mlp.extend([nn.Linear(before, after), nn.PReLU()])
        self.initialize(start)

    @torch.no_grad()
    def initialize(self, start: Start) -> None:
        """Draw initial values from the global generator.

        Args:
            start: "official": every parameter, biases and slopes included, from U(0, 1), which puts all places on one
                ray (docs/methods/cosmo.md); "sane": xavier-uniform weights, biases 0, slopes 0.25.
        """
        for module in self.mlp:
            if start == "official":
                for parameter in module.parameters():
                    nn.init.uniform_(parameter)
            # PReLU keeps its default slope of 0.25.
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, values_NF: Tensor) -> Tensor:
        """Map values [N, F] to vectors [N, D]."""
        return self.mlp(values_NF)


def scale_places(places_N2: NDArray[np.float64], kind: PlaceInput, *, reference_N2: NDArray[np.float64]) -> Tensor:
    """Turn latitudes and longitudes in degrees into the network's inputs [N, 2 or 3], float32.

    Args:
        kind: "raw" degrees; "standardized" by mean and deviation of `reference_N2`; "sphere": unit vectors, without a
            seam at 180 degrees.
        reference_N2: distinct places of the training images.
    """
    places_N2 = np.asarray(places_N2, dtype=np.float64).reshape(-1, 2)
    if kind == "sphere":
        latitude_N, longitude_N = np.deg2rad(places_N2).T
        x_N, y_N = np.cos(latitude_N) * np.cos(longitude_N), np.cos(latitude_N) * np.sin(longitude_N)
        values = np.stack([x_N, y_N, np.sin(latitude_N)], axis=1)
    elif kind == "standardized" and len(places_N2):
        deviation_2 = reference_N2.std(axis=0)
        # All cameras on one parallel: nothing to divide by. Rounding of the mean may leave 1e-17 instead of 0.
        values = (places_N2 - reference_N2.mean(axis=0)) / np.where(deviation_2 > _MIN_DEVIATION, deviation_2, 1.0)
    else:
        values = places_N2
    return torch.from_numpy(values.astype(np.float32))


def scale_hours(hours_N: NDArray[np.float64], kind: HourInput) -> Tensor:
    """Turn clock hours 0 to 23 into the network's inputs [N, 1 or 2], float32.

    Args:
        kind: "raw" hours; "scaled": h / 12 - 1; "circular": sine and cosine, so that 23 is beside 0.
    """
    hours_N = np.asarray(hours_N, dtype=np.float64).reshape(-1)
    if kind == "circular":
        angle_N = 2 * math.pi * hours_N / 24
        values = np.stack([np.sin(angle_N), np.cos(angle_N)], axis=1)
    else:
        values = (hours_N / 12 - 1 if kind == "scaled" else hours_N)[:, None]
    return torch.from_numpy(values.astype(np.float32))


def summarize_reference(places_R2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two points of the same mean and deviation as `places_R2`: enough to standardize by, and no place."""
    mean_2, deviation_2 = places_R2.mean(axis=0), places_R2.std(axis=0)
    return np.stack([mean_2 - deviation_2, mean_2 + deviation_2])
