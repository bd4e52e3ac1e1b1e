"""Starting from what exists: a trained CLIP of open_clip or transformers, or one of our own model folders.

`initial` names it; an encoder of kind `initial` is the tower it has. What was loaded, what is fresh and what was left
over is a table in the run folder: nothing stays random in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.core.progress import say
from foveate.pretrain.recipe import PretrainRecipe
from foveate.vision.backbones import on_meta
from foveate.vision.hf.loading import KIND_OF_TYPE
from foveate.vision.hub import Checkpoint, fetch
from foveate.vision.localizer.folder import KIND as OURS
from foveate.vision.localizer.folder import WEIGHTS, with_tokenizer
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.registry import tower_options

REQUIRED = "required"
KIND = "initial"
TABLE = "initial.json"
# What a recipe that waits for its checkpoint is counted with (`--dry-run`), the size of the paper's B/16.
_STAND_IN = {"kind": "open_clip", "model": "ViT-B-16"}
_STAND_IN_WIDTH = 512
_TOWERS = ("image_encoder", "text_encoder")


def resolved(recipe: PretrainRecipe) -> PretrainRecipe:
    """The recipe with the towers of `initial` in the place of encoders of kind `initial`.

    `image_encoder.source=X` alone is read as `initial=X`. Other fields of such an encoder (geometry, image_size,
    frozen ...) are handed to the tower.

    Raises:
        UserError: when `initial` is 'required' and nothing was given, or it is nothing that has towers.
    """
    wanting = [name for name in _TOWERS if getattr(recipe, name)["kind"] == KIND]
    given = [getattr(recipe, name).get("source") for name in wanting]
    start = recipe.initial if recipe.initial != REQUIRED else next((one for one in given if one), None)
    if start is None:
        if not wanting and recipe.initial is None:
            return recipe
        if not on_meta():
            raise UserError(
                "field initial: this recipe starts from a trained model, say which: initial=FOLDER with a model folder "
                "of Foveate, open_clip or transformers, or initial=OWNER/NAME on the hub"
            )
        changes: dict[str, Any] = {name: _STAND_IN for name in wanting}
        return recipe.model_copy(update={"embed_dim": recipe.embed_dim or _STAND_IN_WIDTH, "initial": None, **changes})
    changes = {"initial": start}
    # One checkpoint has one commit, whichever tower names it.
    pinned = {key: value for name in wanting for key, value in _pin(getattr(recipe, name)).items()}
    for name in wanting:
        options = {key: value for key, value in getattr(recipe, name).items() if key != "kind"}
        if options.get("source", start) == start:
            options = pinned | options
        checkpoint = _fetched(options.get("source") or start, options)
        changes[name] = _tower(checkpoint, name, options)
        if name == "image_encoder" and recipe.embed_dim == 0:
            changes["embed_dim"] = _embed_dim(checkpoint, changes[name]["kind"])
    return recipe.model_copy(update=changes)


def _pin(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("revision", "offline") if options.get(key)}


def _fetched(source: str, options: Mapping[str, Any]) -> Checkpoint:
    return fetch(source, field="initial", **_pin(options))


def kind_of(checkpoint: Checkpoint) -> str:
    """Which encoder reads a folder: "localizing-encoder" for our own, else a kind of `foveate.vision`.

    Raises:
        UserError: when none does.
    """
    folder = checkpoint.folder
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    inner = folder / "model"
    if not (folder / "config.json").is_file():
        also = f". Did you mean '{inner}'?" if (inner / "config.json").is_file() else ""
        raise UserError(f"initial '{checkpoint.name}': no model folder, it has no config.json{also}")
    said = checkpoint.config()
    if said.get("kind") == OURS:
        return OURS
    found = KIND_OF_TYPE.get(str(said.get("model_type")))
    if found is not None:
        return found
    if "architecture" in said:
        return "timm"
    raise UserError(
        f"initial '{checkpoint.name}': model_type '{said.get('model_type')}' has no encoder here; allowed are "
        f"{', '.join(sorted(KIND_OF_TYPE))}, open_clip's and timm's folders, and Foveate's own"
    )


def _tower(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one encoder that stands for the tower of a checkpoint."""
    kind = kind_of(checkpoint)
    if kind == OURS:
        return _own_tower(checkpoint, name, options)
    if not tower_options(kind, name):
        raise UserError(
            f"initial '{checkpoint.name}' ('{kind}') has no text tower: give one, for example "
            "text_encoder={kind: minilm}"
        )
    return {"source": checkpoint.name, **options, "kind": kind}


def _own_tower(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a model folder of ours, which says how its images are fitted in one field, `preprocess`."""
    pinned = _pin(options)
    if pinned and checkpoint.commit is not None:
        raise UserError(
            f"initial '{checkpoint.name}' is a model folder of Foveate: {' and '.join(pinned)} only mean something for "
            "those of other libraries; download the commit that you want and give its folder"
        )
    options = {key: value for key, value in options.items() if key not in ("source", *pinned)}
    own = dict(checkpoint.config()["recipe"][name])
    if name == "text_encoder":
        own = with_tokenizer(own, checkpoint.folder)
    own |= options
    if name == "image_encoder" and own.get("preprocess"):
        shown = dict(own["preprocess"])
        if "geometry" in options:
            shown["geometry"] = options["geometry"]
        if options.get("image_size") is not None:
            shown["size"] = options["image_size"]
        own["preprocess"] = shown
    return own


def _embed_dim(checkpoint: Checkpoint, kind: str) -> int:
    """The width of a checkpoint's joint space."""
    folder = str(checkpoint.folder)
    if kind_of(checkpoint) == OURS:
        return int(checkpoint.config()["recipe"]["embed_dim"])
    if kind == "open_clip":
        path = checkpoint.folder / "open_clip_config.json"
        said = read_json(path)
        if not isinstance(said, dict) or "embed_dim" not in said.get("model_cfg", {}):
            raise UserError(f"{path}: no configuration of open_clip, model_cfg.embed_dim is missing")
        return int(said["model_cfg"]["embed_dim"])
    if kind == "clip":
        from transformers import AutoConfig

        return int(AutoConfig.from_pretrained(folder).projection_dim)
    if kind == "siglip":
        from transformers import SiglipVisionConfig

        return int(SiglipVisionConfig.from_pretrained(folder).hidden_size)
    raise UserError(f"embed_dim 0: '{checkpoint.name}' has no joint space of its own, give the width you want")


def start_from(model: LocalizingModel, initial: str, *, run: Path | None = None) -> dict[str, Any]:
    """Loads a model folder of ours into `model`, or accounts for the towers that were built with their weights.

    Args:
        model: of the resolved recipe. initial: as the recipe says. run: run folder, where the table is written.

    Returns:
        `initial`, `counts` by status, and `tensors`: name -> "loaded", "fresh" or "unexpected".

    Raises:
        UserError: when a tensor of a tower is missing, or any tensor has another shape.
    """
    towers = [getattr(model.recipe, name) for name in _TOWERS]
    checkpoint = _fetched(initial, next((one for one in towers if one.get("source") == initial), {}))
    if kind_of(checkpoint) == OURS:
        tensors = _load_ours(model, checkpoint)
    else:
        tensors = {name: _status(model, name) for name in model.state_dict()}
    counts = dict(Counter(tensors.values()))
    result = {"initial": initial, "commit": checkpoint.commit, "counts": counts, "tensors": tensors}
    if run is not None:
        write_json_atomically(run / TABLE, result)
        parts = [f"{counts.get('loaded', 0)} tensors loaded"]
        for status in ("fresh", "unexpected"):
            if status in counts:
                parts.append(f"{counts[status]} {status} ({', '.join(_areas(tensors, status))})")
        say(f"started from {initial}: {', '.join(parts)}; all of them in {run / TABLE}")
    return result


def _areas(tensors: Mapping[str, str], status: str) -> list[str]:
    """The first parts of the names of all tensors with this status."""
    names = (name.split(".") for name, one in tensors.items() if one == status)
    return sorted({".".join(parts[:2]) if parts[0] in _TOWERS else parts[0] for parts in names})


def _status(model: LocalizingModel, name: str) -> str:
    """Of a tensor of a model whose towers were built with trained weights."""
    area, _, rest = name.partition(".")
    if area in _TOWERS:
        encoder = getattr(model, area)
        fresh = encoder.fresh_parts
        return "fresh" if fresh is None or rest.startswith(fresh) else "loaded"
    scale, bias = model.trained_start()
    if area == "log_scale" and model.recipe.logit_scale_init is None:
        return "fresh" if scale is None else "loaded"
    if area == "bias" and model.recipe.logit_bias_init is None:
        return "fresh" if bias is None else "loaded"
    return "fresh"


def _load_ours(model: LocalizingModel, checkpoint: Checkpoint) -> dict[str, str]:
    path = checkpoint.folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; the model folder is not complete")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    expected = model.state_dict()
    for name in sorted(weights.keys() & expected.keys()):
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"initial '{checkpoint.name}': '{name}' has shape {tuple(weights[name].shape)}, this recipe's model "
                f"{tuple(expected[name].shape)}"
            )
    lost = sorted(name for name in expected.keys() - weights.keys() if name.startswith(_TOWERS))
    if lost:
        raise UserError(
            f"initial '{checkpoint.name}': {len(lost)} tensors of the towers are not in it ({', '.join(lost[:3])}); "
            "image_encoder={kind: initial} text_encoder={kind: initial} takes the towers that it has"
        )
    taken = weights.keys() & expected.keys() - _said_otherwise(model.recipe, weights)
    model.load_state_dict({name: weights[name] for name in taken}, strict=False)
    tensors = {name: "loaded" if name in taken else "fresh" for name in expected}
    return tensors | {name: "unexpected" for name in sorted(weights.keys() - expected.keys())}


def _said_otherwise(recipe: LocalizerSettings, weights: Mapping[str, Tensor]) -> set[str]:
    """Temperatures and biases that the recipe sets, and a temperature whose sigmoid loss has no bias to go with it."""
    names: set[str] = set()
    if recipe.logit_scale_init is not None or (recipe.loss == "sigmoid" and "bias" not in weights):
        names |= {"log_scale", "region_log_scale"}
    if recipe.logit_bias_init is not None:
        names |= {"bias", "region_bias"}
    return names
