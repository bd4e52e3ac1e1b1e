"""Model folder of a map encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

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
from foveate.federated.embedding.networks import perceptron
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.scaling import Scaling

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
