"""The model folder: config.json, model.safetensors, preprocess.json, metrics.json and a card. Never a pickle.

Weights of frozen parts that come with a package (EfficientNet-Lite0, MiniLM) are not copied: the configuration names
them, and they are checked against their hash when they are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import foveate
from foveate.pretrain.model import LocalisingModel
from foveate.pretrain.recipe import PretrainRecipe
from foveate.settings.errors import UserError
from foveate.settings.files import (
    read_json,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from foveate.settings.recipes import validate
from foveate.training.distributed import choose_device

KIND = "localising-encoder"
FORMAT = 1
CONFIG, WEIGHTS, PREPROCESS, METRICS, CARD = (
    "config.json",
    "model.safetensors",
    "preprocess.json",
    "metrics.json",
    "README.md",
)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a model folder keeps; frozen networks of a package are no part of the state."""
    return dict(model.state_dict())


def save_model(model: LocalisingModel, folder: Path, *, metrics: dict[str, Any] | None = None) -> Path:
    """Writes a model folder, each file atomically, config.json last; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in trained_weights(model).items()}
    write_bytes_atomically(folder / WEIGHTS, save(weights))
    write_json_atomically(folder / PREPROCESS, model.image_encoder.preprocess.to_dict())
    write_json_atomically(folder / METRICS, metrics or {})
    write_text_atomically(folder / CARD, _card(model, weights, metrics or {}))
    config = {
        "kind": KIND,
        "format": FORMAT,
        "foveate": foveate.__version__,
        "locate_rule": model.locate_rule,
        "recipe": _self_contained(model),
    }
    write_json_atomically(folder / CONFIG, config)
    return folder


def _self_contained(model: LocalisingModel) -> dict[str, Any]:
    """The recipe with the encoders' architectures, so that no checkpoint it started from is needed again."""
    recipe = model.recipe.model_dump(mode="json")
    for name, encoder in (("image_encoder", model.image_encoder), ("text_encoder", model.text_encoder)):
        recipe[name] = {**recipe[name], **encoder.architecture()}
    return recipe


def load_model(folder: Path, *, device: str | None = None) -> LocalisingModel:
    """Opens a model folder, strictly; see `foveate.pretrain.model.open_model`."""
    if not (folder / CONFIG).is_file():
        hint = folder / "model"
        also = f"; did you mean '{hint}'?" if (hint / CONFIG).is_file() else ""
        raise UserError(f"{folder}: not a model folder, it has no {CONFIG}{also}")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("kind") != KIND:
        kind = config.get("kind") if isinstance(config, dict) else None
        raise UserError(f"{folder / CONFIG}: kind is '{kind}', allowed here is '{KIND}'")
    if config.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG}: format {config.get('format')}, this version reads {FORMAT}")
    for name in ("recipe", "locate_rule"):
        if name not in config:
            raise UserError(f"{folder / CONFIG}: field '{name}' is missing")
    chosen = choose_device(device or "auto")
    model = LocalisingModel(validate(PretrainRecipe, config["recipe"], where=str(folder / CONFIG)))
    _fill(model, folder / WEIGHTS)
    model.locate_rule = config["locate_rule"]
    return model.to(chosen).eval().requires_grad_(False)


def _fill(model: LocalisingModel, path: Path) -> None:
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the model folder is not complete") from error
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    expected = trained_weights(model)
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"{path}: weights missing: {missing[:3] or 'none'}, unexpected: {unexpected[:3] or 'none'}")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise UserError(
                f"{path}: '{key}' has shape {tuple(value.shape)}, the model's is {tuple(expected[key].shape)}"
            )
    model.load_state_dict(weights, strict=False)


def _number(value: dict[str, float | None]) -> str:
    """A value with its interval, where there were enough pictures for one."""
    interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value['value']:.3f}{interval}"


def _card(model: LocalisingModel, weights: dict[str, Tensor], metrics: dict[str, Any]) -> str:
    method = {"none": "CLIP", "prompter": "CLOC (Prompter)", "roi": "CLOC (RoI-Align)"}[model.recipe.regions.method]
    count = sum(value.numel() for value in weights.values())
    rows = "".join(
        f"| {row['question']} | {row['data']} | {column} | {_number(value)} | {row['n']} |\n"
        for row in metrics.get("table", [])
        for column, value in row["values"].items()
    )
    heading = "| question | data | way | value (95 % interval) | n |\n|---|---|---|---|---|\n"
    numbers = f"\n{heading}{rows}" if rows else ""
    return f"""---
library_name: foveate
tags: [{method.split()[0].lower()}, vision-language, localisation]
---
# {method} image and text encoder

Made by Foveate {foveate.__version__}: {count:,} trained weights; image encoder
`{model.recipe.image_encoder["kind"]}`, text encoder `{model.recipe.text_encoder["kind"]}`.

```python
import foveate

model = foveate.open_model("this folder")
```

Trained with `config.json`'s recipe on the collection named in the run folder. It knows what its training pictures
and texts showed, no more: measure it on your own (`foveate evaluate`) before you rely on it.
{numbers}"""
