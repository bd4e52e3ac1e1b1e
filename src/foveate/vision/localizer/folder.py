"""The model folder: config.json, model.safetensors, preprocess.json, metrics.json and a card. Never a pickle.

Weights of frozen parts that come with a package (EfficientNet-Lite0, MiniLM) are not copied: the configuration names
them, and they are checked against their hash when they are loaded. A tokenizer that came from a hub is kept in the
folder `tokenizer`, so that the model opens without a network.
"""

from __future__ import annotations

import shlex
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
from foveate.vision.localizer.model import LEARN_PLACES, LocalizingModel, towers
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.preprocess import check_preprocess
from foveate.vision.registry import tower_options

# Model cards: architecture, training data, measured metrics, and how to load the model.
#
# The front matter is the hub's: https://huggingface.co/docs/hub/model-cards.


METHODS = {"none": "CLIP", "prompter": "CLOC (Prompter)", "roi": "CLOC (RoI-Align)"}


def model_card(
    *,
    recipe: Mapping[str, Any],
    parameters: int,
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    loading: str,
    library: str = "foveate",
    notes: str = "",
) -> str:
    """Write the text of README.md for a model folder or an export.

    Args:
        recipe: of the model, as JSON values.
        parameters: number of trained weights.
        metrics: content of metrics.json; empty where nothing was evaluated.
        provenance: of config.json: collection, license, split, images, command, revision. What is unknown is absent.
        loading: Markdown: how this folder is opened.
        library: `library_name` of the front matter.
        notes: Markdown that goes behind it, for example what an export does differently.
    """
    method = METHODS[recipe["regions"]["method"]]
    kinds = {name: recipe[f"{name}_encoder"]["kind"] for name in ("image", "text")}
    tags = [method.split()[0].lower(), "vision-language", "localization", "zero-shot-image-classification"]
    # The replacement at the end closes the gap that empty notes leave.
    return f"""---
license: other
license_name: chosen-by-the-publisher
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags: [{", ".join(tags)}]
---
# {method} image and text encoder

{parameters:,} trained weights; image encoder `{kinds["image"]}`, text encoder `{kinds["text"]}`;
joint space of {recipe["embed_dim"]} numbers. {_maker(provenance)}

## How to load it

{loading.strip()}

{notes.strip()}

## Data

{_data(provenance)}

## Measured

{_measured(metrics, provenance)}

## Intended use and limits

For comparing {_use(method)} with words: search, sorting, zero-shot classes, research.
It knows what its training images and texts showed, no more; it always answers, also where a phrase means nothing in an
image; it takes over whatever is one-sided or wrong in its training texts. Measure it on your own images
(`foveate evaluate`) before you rely on it. Do not identify people with it, and let it decide nothing that matters
about a person.
""".replace("\n\n\n", "\n")


def _maker(provenance: Mapping[str, Any]) -> str:
    revision = provenance.get("revision")
    return f"Trained with {revision}." if revision else "The release that trained it is not recorded in this folder."


def _use(method: str) -> str:
    return "images" if method == "CLIP" else "images, and boxes in them,"


def _data(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("collection"):
        return "The training collection is not recorded in this folder."
    split = f", split `{provenance['split']}`" if provenance.get("split") else ""
    count = f", {provenance['images']:,} images with text" if provenance.get("images") else ""
    license = provenance.get("license") or "none stated"
    lines = [f"Collection `{provenance['collection']}`{split}{count}.", f"Its license, as it states it: {license}."]
    if provenance.get("command"):
        lines.append(f"Trained by `{shlex.join(provenance['command'])}`; the whole recipe is in `config.json`.")
    lines.append("The license of the weights is for whoever publishes them to choose; the front matter says so.")
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    table = metrics.get("table") or []
    if not table:
        return "Not evaluated."
    assert {"collection", "split", "images", "regions"} <= metrics.keys(), sorted(metrics)
    command = f"foveate evaluate MODEL --collection {metrics['collection']} --split {metrics['split']}"
    revision = provenance.get("revision") or "a release that is not recorded"
    rows = "".join(
        f"| {row['question']} | {row['data']} | {column} | {_number(value)} | {row['n']} |\n"
        for row in table
        for column, value in row["values"].items()
    )
    return f"""On collection `{metrics["collection"]}`, split `{metrics["split"]}`: {metrics["images"]:,} images,
{metrics["regions"]:,} regions, one training. Measured by {revision} at its end; again with `{command}`.

| question | data | way | value (95 % interval) | n |
|---|---|---|---|---|
{rows}"""


def _number(value: Mapping[str, float | None]) -> str:
    """Format a value with its interval, where there were enough images for one."""
    interval = "" if value["low"] is None else f" ({value['low']:.3f} to {value['high']:.3f})"
    return f"{value['value']:.3f}{interval}"


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

`foveate locate IMAGE "a red boat" --model FOLDER` finds a phrase in an image; `foveate export FOLDER --to open_clip`
and the other targets write it for other libraries."""

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
