"""The model folder: config.json, model.safetensors, preprocess.json, metrics.json and a card. Never a pickle.

Weights of frozen parts that come with a package (EfficientNet-Lite0, MiniLM) are not copied: the configuration names
them, and they are checked against their hash when they are loaded. A tokenizer that came from a hub is kept in the
folder `tokenizer`, so that the model opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.core.devices import choose_device
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    PREPROCESS,
    WEIGHTS,
    check_header,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.core.recipes import validate
from foveate.vision.localizer.card import model_card
from foveate.vision.localizer.model import LEARN_PLACES, LocalizingModel, towers
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.preprocess import check_preprocess
from foveate.vision.registry import tower_options

KIND = "localizing-encoder"
FORMAT = 1
TOKENIZER = "tokenizer"
_TOWER = "image_encoder."
# Parts of the recipe that say how the model was trained, not what it is: they are kept as they are.
_TRAINED_AS = ("config_version", "initial", "data", "training", "parameter_rules")
_LOADING = """```python
import foveate

model = foveate.open_model("this folder")
words_1E = model.encode_text(["a red boat"])
```

`foveate locate FOLDER IMAGE "a red boat"` finds a phrase in an image; `foveate export FOLDER --to open_clip` and
the other targets write it for other libraries."""

_WITHOUT_PLACES = f"""**It never learned places**: no image of its training had a region, so its Prompter and its box
head are untrained. Boxes are compared by pooled tokens, as in a CLIP. {LEARN_PLACES[0].upper()}{LEARN_PLACES[1:]}."""


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a model folder stores; frozen networks of a package are not part of the state."""
    return dict(model.state_dict())


def save_model(
    model: LocalizingModel,
    folder: Path,
    *,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a model folder; return it.

    Args:
        metrics: what `foveate.pretrain.evaluate.evaluate` found, for metrics.json and the card.
        provenance: where the weights come from, for config.json and the card; see `model_card`.
    """
    weights, recipe = trained_weights(model), _self_contained(model)
    card = model_card(
        recipe=recipe,
        parameters=sum(value.numel() for value in weights.values()),
        metrics=metrics or {},
        provenance=provenance or {},
        loading=_LOADING,
        notes="" if model.localizes or recipe["regions"]["method"] == "none" else _WITHOUT_PLACES,
    )
    tokenizer = {f"{TOKENIZER}/{name}": content for name, content in model.text_encoder.tokenizer_files().items()}
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={
            "locate_rule": model.locate_rule,
            "localizes": model.localizes,
            "provenance": provenance or {},
            "recipe": recipe,
        },
        tensors=weights,
        files={PREPROCESS: model.image_encoder.preprocess.to_dict(), METRICS: metrics or {}, **tokenizer, CARD: card},
    )


def _self_contained(model: LocalizingModel) -> dict[str, Any]:
    """Return the recipe with the encoders' architectures: no checkpoint that it started from is needed again."""
    recipe = model.trained_as | model.recipe.model_dump(mode="json")
    for name, encoder in (("image_encoder", model.image_encoder), ("text_encoder", model.text_encoder)):
        recipe[name] = {**recipe[name], **encoder.architecture()}
    return recipe


def with_tokenizer(text_encoder: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Add the tokenizer's files of a model folder to the settings of a text encoder."""
    files = folder / TOKENIZER
    if files.is_dir() and "tokenizer" in tower_options(text_encoder["kind"], "text_encoder"):
        return {**text_encoder, "tokenizer": str(files)}
    return dict(text_encoder)


def load_model(folder: Path, *, device: str | None = None) -> LocalizingModel:
    """Open a model folder for inference (evaluation mode, no gradient), strictly.

    Raises:
        UserError: when the folder is no model folder, or a weight is missing, unexpected or of another shape.
    """
    config = read_config(
        folder, kind=KIND, formats=(FORMAT,), fields={"recipe": dict, "locate_rule": str}, label="model"
    )
    trained_as, built_from = _split_recipe(config["recipe"])
    recipe = validate(LocalizerSettings, built_from, where=str(folder / CONFIG))
    recipe = recipe.model_copy(update={"text_encoder": with_tokenizer(recipe.text_encoder, folder)})
    # Before the model is built, so that a config with absurd widths is refused without allocating memory.
    check_header(folder / WEIGHTS, built_from, lambda: LocalizingModel(recipe), where=folder / CONFIG)
    model = LocalizingModel(recipe)
    check_preprocess(folder / PREPROCESS, model.image_encoder.preprocess)
    model.trained_as = trained_as
    weights = read_tensors(folder / WEIGHTS)
    check_tensors(weights, trained_weights(model), folder / WEIGHTS)
    # `check_tensors` has compared names and shapes already, with errors that name the file.
    model.load_state_dict(weights, strict=False)
    model.locate_rule = config["locate_rule"]
    # Folders without this field are of releases that did not record it.
    model.localizes = bool(config.get("localizes", model.localizes))
    return model.to(choose_device(device or "auto")).eval().requires_grad_(False)


def read_image_tower(folder: Path) -> dict[str, Any]:
    """Return the settings that the image tower of a model folder is built from, for `build_image_encoder`.

    Raises:
        UserError: the folder is no model folder of `foveate pretrain`.
    """
    config = read_config(folder, kind=KIND, formats=(FORMAT,), fields={"recipe": dict}, label="model")
    _, built_from = _split_recipe(config["recipe"])
    return towers(validate(LocalizerSettings, built_from, where=str(folder / CONFIG)), "image_encoder")


def load_image_tower(encoder: nn.Module, folder: Path) -> None:
    """Load the image tower of a model folder into an encoder that was built from `read_image_tower`, strictly.

    The projection to the joint space is left out where the encoder has none.

    Raises:
        UserError: a weight is missing or of another shape.
    """
    weights = {
        name.removeprefix(_TOWER): weight
        for name, weight in read_tensors(folder / WEIGHTS).items()
        if name.startswith(_TOWER)
    }
    expected = encoder.state_dict()
    # Only the projection may be dropped: any other surplus weight means another architecture, and is refused.
    weights = {name: weight for name, weight in weights.items() if name in expected or not name.startswith("proj.")}
    check_tensors(weights, expected, folder / WEIGHTS)
    encoder.load_state_dict({name: weight.float() for name, weight in weights.items()})


def _split_recipe(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a recipe into how the model was trained and what it is built from."""
    trained_as = {key: value for key, value in recipe.items() if key in _TRAINED_AS}
    return trained_as, {key: value for key, value in recipe.items() if key not in _TRAINED_AS}
