"""Networks from explicit random numbers, their weights as plain arrays (what is sent), and as a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    WEIGHTS,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.scaling import Scaling

Weights = dict[str, NDArray[np.generic]]
# This bounds the float64 copy of all clients' weights in a trimmed mean: 32 MiB.
_BLOCK_VALUES = 1 << 22


def linear(inputs: int, outputs: int, generator: torch.Generator, dtype: torch.dtype) -> nn.Linear:
    """PyTorch's own start of a linear layer (uniform within 1 / sqrt(inputs)), from a generator of its own."""
    # `skip_init`: the default start would draw from the global generator first.
    layer = torch.nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)
    assert isinstance(layer, nn.Linear)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def perceptron(
    widths: Sequence[int], generator: torch.Generator, *, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them; its weights are named "0.weight", "2.weight", ..."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        layers += [nn.ReLU()] * (index > 0) + [linear(inputs, outputs, generator, dtype)]
    return nn.Sequential(*layers)


def copy_weights(network: nn.Module) -> Weights:
    """Copy all parameters and buffers as arrays."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def load_weights(network: nn.Module, weights: Mapping[str, NDArray[np.generic]]) -> None:
    """Load arrays into a network of the same shapes.

    Raises:
        UserError: for other names, shapes or dtypes.
    """
    state = network.state_dict()
    if set(state) != set(weights):
        name = sorted(set(state) ^ set(weights))[0]
        raise UserError(f"encoder weights: '{name}' is missing on one side")
    for name, value in state.items():
        tensor = torch.from_numpy(np.asarray(weights[name]))
        if tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise UserError(
                f"encoder weights '{name}': {list(tensor.shape)} of {tensor.dtype}, "
                f"expected {list(value.shape)} of {value.dtype}"
            )
        value.copy_(tensor)


def flatten_weights(network: nn.Module) -> NDArray[np.generic]:
    """Flatten all parameters and buffers into one vector, in the order of `state_dict`; this is what is sent.

    Raises:
        UserError: the network has a buffer of integers or parameters of several types.
    """
    values = network.state_dict()
    dtypes = {value.dtype for value in values.values()}
    if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
        odd = next((name for name, value in values.items() if not value.dtype.is_floating_point), "its parameters")
        raise UserError(
            f"encoder: '{odd}' has another type than the rest; averaging needs one floating-point type throughout, so "
            "use layer or group normalization instead of batch normalization"
        )
    # One vector, not arrays by name: its rule needs a length only, and averages and distances need no loop.
    return torch.cat([value.detach().reshape(-1) for value in values.values()]).cpu().numpy()


def load_flat(network: nn.Module, vector_P: NDArray[np.generic]) -> None:
    """Load such a vector into a network.

    Raises:
        UserError: for another length or dtype.
    """
    values = network.state_dict()
    vector = torch.from_numpy(np.array(vector_P))  # a copy: arrays of messages are read-only
    sizes = [value.numel() for value in values.values()]
    first = next(iter(values.values()))
    if vector.shape != (sum(sizes),) or vector.dtype != first.dtype:
        raise UserError(
            f"encoder weights: {list(vector.shape)} of {vector.dtype}, expected [{sum(sizes)}] of {first.dtype}"
        )
    for value, part in zip(values.values(), vector.split(sizes), strict=True):
        value.copy_(part.view_as(value))


def average(weights_M: Sequence[Mapping[str, NDArray[np.generic]]], shares_M: Sequence[float]) -> Weights:
    """FedAvg: the weighted mean of every array, summed in float64. Shares are scaled to sum to 1."""
    names = weights_M[0]
    return {name: average_arrays([weights[name] for weights in weights_M], shares_M) for name in names}


def average_arrays(arrays_M: Sequence[NDArray[np.generic]], shares_M: Sequence[float]) -> NDArray[np.generic]:
    """Return the weighted mean of arrays, computed in float64, as the first one's dtype."""
    # Use float64: float32 sums over many clients depend on their order.
    shares = np.asarray(shares_M, dtype=np.float64) / float(np.sum(shares_M))
    total = np.zeros(arrays_M[0].shape)
    for share, array in zip(shares, arrays_M, strict=True):
        total += share * array.astype(np.float64)
    return total.astype(arrays_M[0].dtype)


def trimmed_mean(arrays_M: Sequence[NDArray[np.generic]], trim: float) -> NDArray[np.generic]:
    """Mean of each value without the share `trim` of arrays at either end; 0.5 is the median.

    Every array counts the same: a client that lies about weights would lie about its number of points, too.
    """
    count, size = len(arrays_M), arrays_M[0].size
    # The median of an even number is the mean of the two middle values.
    dropped = (count - 1) // 2 if trim >= 0.5 else int(trim * count + 1e-9)  # 0.3 of 10 are three
    result = np.empty(size)
    width = max(1, _BLOCK_VALUES // count)
    for start in range(0, size, width):
        part = np.stack([array.reshape(-1)[start : start + width] for array in arrays_M]).astype(np.float64)
        result[start : start + width] = np.sort(part, axis=0)[dropped : count - dropped].mean(axis=0)
    return result.reshape(arrays_M[0].shape).astype(arrays_M[0].dtype)


def frozen_rows(network: nn.Module, rows_ND: Tensor) -> Tensor:
    """Compute the network's outputs [N, d] without gradients, in blocks that bound the memory."""
    # Evaluation mode: dropout of a custom encoder must not blur positions.
    network.eval()
    with torch.no_grad():
        parts = [network(part) for part in rows_ND.split(8192)]
    return torch.cat(parts) if parts else rows_ND.new_zeros((0, 2))


KIND, FORMAT = "map-encoder", 2
_CARD = """# A map encoder

Maps points of {features} features to positions in {dimensions} dimensions. {parameters:,} weights, trained by the
method `{method}` in {rounds} rounds over {clients} clients.

```python
from foveate import FederatedNeighborEmbedding

positions = FederatedNeighborEmbedding.load("this folder").transform(points)
```

The weights were computed from the clients' points and say something about them: see the page on what is exchanged.
"""


def encoder_config(
    options: EmbeddingOptions, features: int, clients: int, scaling: Scaling | None = None
) -> dict[str, Any]:
    """Config of the perceptron that these options build, and of the common scale in which it reads points."""
    return {
        **({} if scaling is None else {"scaling": scaling.to_json()}),
        "widths": [features, *options.hidden, options.dimensions],
        "precision": options.precision,
        "method": options.method,
        "rounds": options.rounds,
        "clients": clients,
        "options": options.model_dump(mode="json"),
    }


def save_encoder(
    encoder: nn.Module, folder: Path, config: dict[str, Any], *, metrics: dict[str, Any] | None = None
) -> Path:
    """Write a model folder; return it.

    Args:
        config: see `encoder_config`.
    """
    tensors = encoder.state_dict()
    card = _CARD.format(
        features=config["widths"][0],
        dimensions=config["widths"][-1],
        parameters=sum(value.numel() for value in tensors.values()),
        method=config["method"],
        rounds=config["rounds"],
        clients=config["clients"],
    )
    files = {METRICS: metrics or {}, CARD: card}
    return write_model_folder(folder, kind=KIND, format=FORMAT, config=config, tensors=tensors, files=files)


def load_encoder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Open a model folder: the encoder, in eval mode, and its config.

    Raises:
        UserError: the folder is not a model of this kind, or damaged.
    """
    fields = {"widths": list, "precision": str, "options": dict}
    config = read_config(folder, kind=KIND, formats=[FORMAT], fields=fields, label="map encoder")
    widths, precision = config["widths"], config["precision"]
    if precision not in ("float32", "float64"):
        raise UserError(f"{folder / CONFIG}: field 'precision' must be float32 or float64 (got {precision!r})")
    # A network is built from these numbers, so they are checked before it is.
    if len(widths) < 2 or not all(isinstance(width, int) and width > 0 for width in widths):
        raise UserError(f"{folder / CONFIG}: field 'widths' must list two or more whole numbers (got {widths!r:.60})")
    network = perceptron(widths, torch.Generator(), dtype=getattr(torch, precision))
    tensors = read_tensors(folder / WEIGHTS)
    check_tensors(tensors, network.state_dict(), folder / WEIGHTS)
    network.load_state_dict(tensors)
    return network.eval(), config
