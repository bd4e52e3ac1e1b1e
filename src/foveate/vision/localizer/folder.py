"""The model folder: config.json, model.safetensors, preprocess.json, metrics.json and a card. Never a pickle.

Weights of frozen parts that come with a package (EfficientNet-Lite0, MiniLM) are not copied: the configuration names
them, and they are checked against their hash when they are loaded. A tokenizer that came from a hub is kept in the
folder `tokenizer`, so that the model opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.core.files import (
    read_json,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)
from foveate.core.recipes import validate
from foveate.core.version import __version__
from foveate.vision.device import choose_device
from foveate.vision.localizer.card import model_card
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.registry import tower_options

KIND = "localizing-encoder"
FORMAT = 1
CONFIG, WEIGHTS, PREPROCESS, METRICS, CARD = (
    "config.json",
    "model.safetensors",
    "preprocess.json",
    "metrics.json",
    "README.md",
)
TOKENIZER = "tokenizer"
# Parts of the recipe that say how the model was trained, not what it is: they are kept as they are.
_TRAINED_AS = ("config_version", "initial", "data", "training", "parameter_rules")
_LOADING = """```python
import foveate

model = foveate.open_model("this folder")
words_1E = model.encode_text(["a red boat"])
```

`foveate locate FOLDER IMAGE "a red boat"` finds a phrase in an image; `foveate export FOLDER --to open_clip` and
the other targets write it for other libraries."""


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a model folder keeps; frozen networks of a package are no part of the state."""
    return dict(model.state_dict())


def save_model(
    model: LocalizingModel,
    folder: Path,
    *,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Writes a model folder, each file atomically, config.json last; returns `folder`.

    Args:
        metrics: what `foveate.pretrain.evaluate.evaluate` found, for metrics.json and the card.
        provenance: where the weights come from, for config.json and the card; see `model_card`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().contiguous() for key, value in trained_weights(model).items()}
    write_bytes_atomically(folder / WEIGHTS, save(weights))
    write_json_atomically(folder / PREPROCESS, model.image_encoder.preprocess.to_dict())
    write_json_atomically(folder / METRICS, metrics or {})
    for name, content in model.text_encoder.tokenizer_files().items():
        write_bytes_atomically(folder / TOKENIZER / name, content)
    recipe = _self_contained(model)
    card = model_card(
        recipe=recipe,
        parameters=sum(value.numel() for value in weights.values()),
        metrics=metrics or {},
        provenance=provenance or {},
        loading=_LOADING,
    )
    write_text_atomically(folder / CARD, card)
    config = {
        "kind": KIND,
        "format": FORMAT,
        "foveate": __version__,
        "locate_rule": model.locate_rule,
        "provenance": provenance or {},
        "recipe": recipe,
    }
    write_json_atomically(folder / CONFIG, config)
    return folder


def _self_contained(model: LocalizingModel) -> dict[str, Any]:
    """The recipe with the encoders' architectures, so that no checkpoint it started from is needed again."""
    recipe = model.trained_as | model.recipe.model_dump(mode="json")
    for name, encoder in (("image_encoder", model.image_encoder), ("text_encoder", model.text_encoder)):
        recipe[name] = {**recipe[name], **encoder.architecture()}
    return recipe


def with_tokenizer(text_encoder: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a text encoder, with the tokenizer's files that a model folder keeps for it."""
    files = folder / TOKENIZER
    if files.is_dir() and "tokenizer" in tower_options(text_encoder["kind"], "text_encoder"):
        return {**text_encoder, "tokenizer": str(files)}
    return dict(text_encoder)


def load_model(folder: Path, *, device: str | None = None) -> LocalizingModel:
    """Opens a model folder for use (evaluation mode, no gradient), strictly.

    Raises:
        UserError: when the folder is no model folder, or a weight is missing, unexpected or of another shape.
    """
    if not (folder / CONFIG).is_file():
        hint = folder / "model"
        also = f". Did you mean '{hint}'?" if (hint / CONFIG).is_file() else ""
        why = f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: not a model folder, {why}{also}")
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
    trained_as, built_from = _parts(config["recipe"], folder / CONFIG)
    recipe = validate(LocalizerSettings, built_from, where=str(folder / CONFIG))
    recipe = recipe.model_copy(update={"text_encoder": with_tokenizer(recipe.text_encoder, folder)})
    model = LocalizingModel(recipe)
    model.trained_as = trained_as
    _fill(model, folder / WEIGHTS)
    model.locate_rule = config["locate_rule"]
    return model.to(chosen).eval().requires_grad_(False)


def _parts(recipe: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the model was trained, and what it is built from."""
    if not isinstance(recipe, dict):
        raise UserError(f"{path}: field 'recipe' is a mapping of names to values, this is {type(recipe).__name__}")
    return {key: recipe[key] for key in _TRAINED_AS if key in recipe}, {
        key: value for key, value in recipe.items() if key not in _TRAINED_AS
    }


def _fill(model: LocalizingModel, path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, a file of weights is wanted")
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
