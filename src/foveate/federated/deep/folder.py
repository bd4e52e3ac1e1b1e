"""A trained encoder with its centers as a model folder: config.json, model.safetensors, metrics.json, a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.version import __version__
from foveate.federated.deep.checkpoint import TrainingSnapshot
from foveate.federated.deep.encoder import weights_of
from foveate.federated.deep.fitting import Fitted, network_of
from foveate.federated.deep.options import options_of
from foveate.federated.deep.rounds import Deep

KIND, FORMAT = "deep-clustering", 1
CONFIG, WEIGHTS, METRICS, CARD = "config.json", "model.safetensors", "metrics.json", "README.md"
_NETWORK, _CENTERS = "network.", "centers"
_CARD = """# An encoder and {clusters} centers

Makes a unit vector of {width} numbers of each row of {features}, and finds the nearest of {clusters} centers.
{parameters:,} weights, trained by the method `{method}` in {rounds} rounds over {clients} clients.

```python
from foveate.federated.deep.folder import load_model

model = load_model("this folder")
model.transform(points), model.predict(points)
```

The weights were computed from the clients' points and say something about them: see the page on what is exchanged.
"""


def save_model(fitted: Fitted, folder: Path, *, clients: int, metrics: dict[str, Any] | None = None) -> Path:
    """Writes a model folder, config.json last; returns it."""
    state = fitted.network.state_dict()
    tensors = {_NETWORK + name: value.detach().cpu().contiguous() for name, value in state.items()}
    tensors[_CENTERS] = torch.from_numpy(fitted.centers.copy())
    write_bytes_atomically(folder / WEIGHTS, save(tensors))
    write_json_atomically(folder / METRICS, metrics or {})
    options = fitted.options
    card = _CARD.format(
        clusters=len(fitted.centers),
        width=options.width,
        features=fitted.features,
        parameters=sum(value.numel() for value in state.values()),
        method=options.method,
        rounds=fitted.stand.state.round,
        clients=clients,
    )
    write_text_atomically(folder / CARD, card)
    about = {
        "kind": KIND,
        "format": FORMAT,
        "foveate": __version__,
        "features": fitted.features,
        "clients": clients,
        "rounds": fitted.stand.state.round,
        "options": options.model_dump(mode="json"),
    }
    write_json_atomically(folder / CONFIG, about)
    return folder


def load_model(folder: str | Path) -> Fitted:
    """The encoder and centers of a model folder, ready to `transform` and `predict`; without a history.

    Raises:
        UserError: when the folder is none, or is damaged.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file():
        hint = path / "model"
        also = f". Did you mean '{hint}'?" if (hint / CONFIG).is_file() else ""
        raise UserError(f"{path}: not a model folder, it has no {CONFIG}{also}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise UserError(f"{path / CONFIG}: field 'kind' must be '{KIND}'")
    if config.get("format") != FORMAT:
        raise UserError(f"{path / CONFIG}: format {config.get('format')}, this version reads {FORMAT}")
    features = config.get("features")
    if not isinstance(features, int) or features < 1:
        raise UserError(f"{path / CONFIG}: field 'features' is missing or damaged")
    options = options_of(config.get("options") or {}, where=str(path / CONFIG))
    network = network_of(options, features)
    try:
        tensors = load_file(path / WEIGHTS)
        centers = tensors.pop(_CENTERS).double().numpy()
        network.load_state_dict({name.removeprefix(_NETWORK): value for name, value in tensors.items()})
    except (FileNotFoundError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(f"{path / WEIGHTS}: missing, damaged or of other shapes ({error!s:.200})") from None
    state = Deep(weights_of(network), options.width, centers, round=int(config.get("rounds", 0)))
    return Fitted(options, features, network.eval(), TrainingSnapshot(state))
