"""Check the weights and prototypes that a server sends, layer by layer, as a client that does not trust it.

A server reads rows by weights that no training makes: equal rows of one layer whose biases are graded (the gradients of
neighbors then differ by single points), rows so large or biases so far out that a unit acts on a few points only. The
bounds below are several times what honest encoders reached, see `tests/federated/test_encoder_checks.py`. They make
attacks harder and prove nothing; what proves something is the client's noise (`foveate.federated.deep.noise`). Where it
is there, layers are not checked: rows of noise have any direction and length.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.federated import reasons
from foveate.federated.deep.encoder import Embedder, set_weights
from foveate.federated.reasons import Refusal

# Rows of honest encoders reached a cosine of .94 (13 inputs), .72 (64 inputs) after 30 rounds of three epochs.
MAX_COSINE = 0.99
# Norms of honest layers reached 1.2 times those of the start, single rows twice.
MAX_GROWTH = 8.0
# Values of a layer that starts at zero, such as the biases of batch normalization, have no norm to compare with.
MAX_FROM_ZERO = 4.0
NORM_TOLERANCE = 1e-6
_RUNNING = ("running_mean", "running_var")


def _named_layers(network: nn.Module) -> dict[str, NDArray[np.float64]]:
    """Layers by name as [rows, inputs] or [values]; without batch statistics, whose scale is that of the data."""
    return {
        name: (tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor).double().numpy()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not name.endswith(_RUNNING)
    }


def largest_cosine(rows_HD: NDArray[np.float64]) -> float:
    """Largest absolute cosine of two rows; 0 for a single row, and for rows of zeros, which have no direction."""
    norm_H = np.linalg.norm(rows_HD, axis=1)
    units_HD = rows_HD / np.where(norm_H > 0, norm_H, 1.0)[:, None]
    cosine_HH = np.abs(units_HD @ units_HD.T)
    np.fill_diagonal(cosine_HH, 0.0)
    return float(cosine_HH.max(initial=0.0))


def check_layers(network: nn.Module, start: nn.Module) -> None:
    """Raise Refusal for layers that no training from the start's weights makes; the data are not touched.

    Args:
        network: with the weights that came.
        start: the same architecture with its initial weights.
    """
    starts = _named_layers(start)
    for name, values in _named_layers(network).items():
        begin = starts[name]
        size, begin_size = float(np.linalg.norm(values)), float(np.linalg.norm(begin))
        # Written with `not`, so that NaN is refused, too.
        if not size <= max(MAX_GROWTH * begin_size, MAX_FROM_ZERO * (begin_size == 0) * np.sqrt(begin.size)):
            raise _refuse(f"layer {name} has norm {size:.3g}; it starts at {begin_size:.3g}")
        if values.ndim < 2:
            continue
        norm_H, begin_H = np.linalg.norm(values, axis=1), np.linalg.norm(begin, axis=1)
        if not norm_H.max() <= MAX_GROWTH * begin_H.max() or not norm_H.min() >= begin_H.min() / MAX_GROWTH:
            raise _refuse(f"layer {name} has rows of norm {norm_H.min():.3g} to {norm_H.max():.3g}")
        # Rows of few inputs are nearly parallel from the start, so that the bound lies half way from there to 1.
        bound = max(MAX_COSINE, (1 + largest_cosine(begin)) / 2)
        if begin.shape[1] > 1 and (cosine := largest_cosine(values)) > bound:
            raise _refuse(f"layer {name} has two rows of cosine {cosine:.6f}, equal up to scale and bias")


def check_variances(network: nn.Module) -> None:
    """Raise Refusal for a variance of batch normalization below 0, whose root is NaN for every point."""
    for name, tensor in network.state_dict().items():
        if name.endswith(_RUNNING[1]) and bool((tensor < 0).any()):
            raise _refuse(f"buffer {name} has a variance below 0")


def check_prototypes(centers_KD: NDArray[np.floating], max_centers: int) -> None:
    """Raise Refusal for more centers than allowed, or for some that are longer than the unit vectors of a run."""
    longest = float(np.linalg.norm(centers_KD.astype(np.float64), axis=1).max())
    if not 1 <= len(centers_KD) <= max_centers or not longest <= 1 + NORM_TOLERANCE:
        raise _refuse(
            f"brings {len(centers_KD)} prototypes of norm up to {longest:.3g}; "
            f"expected at most {max_centers} of norm 1 or less"
        )


def _refuse(text: str) -> Refusal:
    return Refusal(reasons.WEIGHTS, f"weights: {text}; no honest run sends such")


def find_narrow_units(network: Embedder, points: Tensor, min_count: int) -> NDArray[np.bool_]:
    """Units of the head's hidden layer that act, or do not act, on some but fewer than `min_count` points, [H].

    What such a unit learns is the gradient of these few points, or that of all but them. Honest encoders have such
    units from the start (a quarter of 256 on digits), so that they are no reason to refuse.
    """
    network.eval()
    with torch.inference_mode():
        on_NH = network.head[:2](network.features(points)) > 0
    on_H = on_NH.sum(0).cpu().numpy()
    off_H = len(points) - on_H
    return ((0 < on_H) & (on_H < min_count)) | ((0 < off_H) & (off_H < min_count))


def restore_units(network: Embedder, before_P: NDArray[np.float32], units_H: NDArray[np.bool_]) -> None:
    """Put back the weights of these units of the head's hidden layer, those into them and those out of them."""
    before = copy.deepcopy(network)
    set_weights(before, before_P)
    units = torch.from_numpy(units_H)
    with torch.no_grad():
        weight, bias, last, _ = network.head.parameters()
        old_weight, old_bias, old_last, _ = before.head.parameters()
        weight[units], bias[units], last[:, units] = old_weight[units], old_bias[units], old_last[:, units]
