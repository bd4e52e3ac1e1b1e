"""A map encoder as a model folder: config.json, model.safetensors, metrics.json, a card. Never a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_bytes_atomically, write_json_atomically, write_text_atomically
from foveate.core.version import __version__
from foveate.federated.embedding.networks import perceptron

KIND, FORMAT = "map-encoder", 1
CONFIG, WEIGHTS, METRICS, CARD = "config.json", "model.safetensors", "metrics.json", "README.md"
_CARD = """# A map encoder

Places points of {features} features on a map of {dimensions} dimensions. {parameters:,} weights, trained by the method
`{method}` in {rounds} rounds over {clients} clients.

```python
from foveate import FederatedNeighborEmbedding

positions = FederatedNeighborEmbedding.load("this folder").transform(points)
```

The weights were computed from the clients' points and say something about them: see the page on what is exchanged.
"""


def save_encoder(
    encoder: nn.Module, folder: Path, *, about: dict[str, Any], metrics: dict[str, Any] | None = None
) -> Path:
    """Writes a model folder, config.json last; returns it.

    Args:
        about: `widths` of the perceptron, `precision`, `method`, `rounds`, `clients`; kept as they are.

    Raises:
        UserError: for another architecture than the perceptron, which a folder could not rebuild.
    """
    widths = about.get("widths")
    if widths is None:
        raise UserError("an encoder of another architecture cannot be saved as a model folder; save its state yourself")
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    write_bytes_atomically(folder / WEIGHTS, save(weights))
    write_json_atomically(folder / METRICS, metrics or {})
    card = _CARD.format(
        features=widths[0],
        dimensions=widths[-1],
        parameters=sum(value.numel() for value in weights.values()),
        method=about["method"],
        rounds=about["rounds"],
        clients=about["clients"],
    )
    write_text_atomically(folder / CARD, card)
    write_json_atomically(folder / CONFIG, {"kind": KIND, "format": FORMAT, "foveate": __version__, **about})
    return folder


def load_encoder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder of a model folder, in eval mode, and its config.json.

    Raises:
        UserError: when the folder is none, or is damaged.
    """
    if not (folder / CONFIG).is_file():
        hint = folder / "model"
        also = f". Did you mean '{hint}'?" if (hint / CONFIG).is_file() else ""
        raise UserError(f"{folder}: not a model folder, it has no {CONFIG}{also}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise UserError(f"{folder / CONFIG}: field 'kind' must be '{KIND}'")
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG}: format {config.get('format')}, this version reads {FORMAT}")
    widths, precision = config.get("widths"), config.get("precision")
    if not isinstance(widths, list) or precision not in ("float32", "float64"):
        raise UserError(f"{folder / CONFIG}: fields 'widths' and 'precision' are missing or damaged")
    network = perceptron(widths, torch.Generator(), dtype=getattr(torch, precision))
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: missing, damaged or of other shapes ({error!s:.200})") from None
    return network.eval(), config
