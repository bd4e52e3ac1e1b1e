"""Model folder of a trained encoder with its centers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.core.model_folder import CARD, CONFIG, METRICS, WEIGHTS, read_config, read_tensors, write_model_folder
from foveate.federated.deep.options import DeepOptions, read_options
from foveate.federated.scaling import Scaling

if TYPE_CHECKING:
    from torch import Tensor

KIND, FORMAT = "deep-clustering", 2
_NETWORK, _CENTERS = "network.", "centers"
_CARD = """# An encoder and {clusters} centers

Makes a unit vector of {width} values from each row of {features}, and finds the nearest of {clusters} centers.
{parameters:,} weights, trained by the method `{method}` in {rounds} rounds over {clients} clients.

```python
from foveate.federated.deep.job import load_model

model = load_model("this folder")
model.transform(points), model.predict(points)
```

The weights were computed from the clients' points and say something about them: see the page on what is exchanged.
"""


def write_model(
    network: nn.Module,
    centers_KD: NDArray[np.float64],
    folder: Path,
    *,
    options: DeepOptions,
    features: int,
    rounds: int,
    clients: int,
    scaling: Scaling | None = None,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder; return it."""
    state = network.state_dict()
    card = _CARD.format(
        clusters=len(centers_KD),
        width=options.width,
        features=features,
        parameters=sum(value.numel() for value in state.values()),
        method=options.method,
        rounds=rounds,
        clients=clients,
    )
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={
            **({} if scaling is None else {"scaling": scaling.to_json()}),
            "features": features,
            "clients": clients,
            "rounds": rounds,
            "options": options.model_dump(mode="json"),
        },
        tensors={
            # With a prefix, so that no tensor of a network can be taken for the centers.
            **{_NETWORK + name: value for name, value in state.items()},
            _CENTERS: torch.from_numpy(centers_KD.copy()),
        },
        files={METRICS: metrics or {}, CARD: card},
    )


def read_model(folder: Path) -> tuple[DeepOptions, dict[str, Any], dict[str, Tensor], NDArray[np.float64]]:
    """Read options, config, the network's tensors and the centers of a model folder.

    Raises:
        UserError: the folder is not a model of this kind, or damaged.
    """
    fields = {"features": int, "rounds": int, "options": dict}
    config = read_config(folder, kind=KIND, formats=[FORMAT], fields=fields, label="deep clustering")
    # A network is built from this number, so it is checked before it is.
    if config["features"] < 1:
        raise UserError(f"{folder / CONFIG}: field 'features' must be at least 1 (got {config['features']})")
    options = read_options(config["options"], where=str(folder / CONFIG))
    tensors = read_tensors(folder / WEIGHTS)
    if _CENTERS not in tensors:
        raise UserError(f"{folder / WEIGHTS}: tensor '{_CENTERS}' is missing")
    centers = tensors.pop(_CENTERS).double().numpy()
    return options, config, {name.removeprefix(_NETWORK): value for name, value in tensors.items()}, centers
