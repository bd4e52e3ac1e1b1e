"""Initialize from a trained model: a CLIP of open_clip or transformers, or a model folder of Foveate.

The recipe's field `initial` names it; an encoder of kind `initial` is its tower. A table in the run folder lists which
tensors were loaded, are fresh, or were left over, so that no tensor stays random unnoticed.
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
from foveate.core.files import write_json_atomically
from foveate.core.hub import Checkpoint, fetch
from foveate.core.progress import say
from foveate.pretrain.recipe import PretrainRecipe
from foveate.vision.backbones import on_meta
from foveate.vision.localizer.folder import KIND as OURS
from foveate.vision.localizer.folder import WEIGHTS, with_tokenizer
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.settings import LocalizerSettings
from foveate.vision.localizer.sources import OPEN_CLIP, detect_kind, joint_width, open_clip_width, split_open_clip
from foveate.vision.registry import tower_options

REQUIRED = "required"
KIND = "initial"
TABLE = "initial.json"
# Stands for the missing checkpoint in a `--dry-run` of a recipe with `initial: required`: the paper's B/16.
_STAND_IN = {"kind": "open_clip", "model": "ViT-B-16"}
_STAND_IN_WIDTH = 512
_TOWERS = ("image_encoder", "text_encoder")
_REGION_MODULES = ("prompter.", "roi.")


def resolve_initial(recipe: PretrainRecipe) -> PretrainRecipe:
    """Replace encoders of kind `initial` by the towers of the checkpoint `initial`.

    `image_encoder.source=X` without a kind is read as `initial=X`. Other fields of such an encoder (geometry,
    image_size, frozen ...) are passed to the tower.

    Raises:
        UserError: when `initial` is 'required' and missing, or it has no towers.
    """
    waiting = [name for name in _TOWERS if getattr(recipe, name)["kind"] == KIND]
    sources = [getattr(recipe, name).get("source") for name in waiting]
    start = recipe.initial if recipe.initial != REQUIRED else next((source for source in sources if source), None)
    if start is None:
        if not waiting and recipe.initial is None:
            return recipe
        if not on_meta():
            raise UserError(
                "field initial: required; expected initial=FOLDER with a model folder of Foveate, open_clip or "
                "transformers, initial=OWNER/NAME on the hub, or initial=open_clip:ARCH/PRETRAINED"
            )
        changes: dict[str, Any] = {name: _STAND_IN for name in waiting}
        return recipe.model_copy(update={"embed_dim": recipe.embed_dim or _STAND_IN_WIDTH, "initial": None, **changes})
    changes = {"initial": start}
    # Both towers come from the same commit, whichever of them pins it.
    pinned = {key: value for name in waiting for key, value in _pin(getattr(recipe, name)).items()}
    for name in waiting:
        options = {key: value for key, value in getattr(recipe, name).items() if key != "kind"}
        if options.get("source", start) == start:
            options = pinned | options
        source = options.get("source") or start
        if source.startswith(OPEN_CLIP):
            model, pretrained = split_open_clip(source)
            options = {key: value for key, value in options.items() if key != "source"}
            changes[name] = {"kind": "open_clip", "model": model, "pretrained": pretrained, **options}
            # A width of 0 means that of the checkpoint's joint space.
            if name == "image_encoder" and recipe.embed_dim == 0:
                changes["embed_dim"] = open_clip_width(model)
            continue
        checkpoint = _fetch(source, options)
        changes[name] = _tower(checkpoint, name, options)
        if name == "image_encoder" and recipe.embed_dim == 0:
            changes["embed_dim"] = joint_width(checkpoint, changes[name]["kind"])
    return recipe.model_copy(update=changes)


def _pin(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("revision", "offline") if options.get(key)}


def _fetch(source: str, options: Mapping[str, Any]) -> Checkpoint:
    return fetch(source, field="initial", **_pin(options))


def _tower(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an encoder that is the tower of a checkpoint."""
    kind = detect_kind(checkpoint)
    if kind == OURS:
        return _foveate_tower(checkpoint, name, options)
    if not tower_options(kind, name):
        raise UserError(
            f"initial '{checkpoint.name}' ('{kind}') has no text tower; set one, for example "
            "text_encoder={kind: minilm}"
        )
    return {"source": checkpoint.name, **options, "kind": kind}


def _foveate_tower(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return them for a model folder of Foveate, where geometry and size are inside one field, `preprocess`."""
    pinned = _pin(options)
    if pinned and checkpoint.commit is not None:
        raise UserError(
            f"initial '{checkpoint.name}' is a model folder of Foveate: {' and '.join(pinned)} have an effect only on "
            "checkpoints of other libraries; download the commit and give its folder"
        )
    options = {key: value for key, value in options.items() if key not in ("source", *pinned)}
    tower = dict(checkpoint.config()["recipe"][name])
    if name == "text_encoder":
        tower = with_tokenizer(tower, checkpoint.folder)
    tower |= options
    if name == "image_encoder" and tower.get("preprocess"):
        preprocess = dict(tower["preprocess"])
        if "geometry" in options:
            preprocess["geometry"] = options["geometry"]
        if options.get("image_size") is not None:
            preprocess["size"] = options["image_size"]
        tower["preprocess"] = preprocess
    return tower


def start_from(model: LocalizingModel, initial: str, *, run: Path | None = None) -> dict[str, Any]:
    """Load a model folder of Foveate into `model`, or list the towers that were built with their weights.

    Args:
        model: of the resolved recipe. initial: of the recipe. run: run folder, where the table is written.

    Returns:
        `initial`, `counts` by status, `localizes` (whether it brings a region module that learned places), and
        `tensors`: name -> "loaded", "fresh" or "unexpected".

    Raises:
        UserError: when a tensor of a tower is missing, or any tensor has another shape.
    """
    towers = [getattr(model.recipe, name) for name in _TOWERS]
    checkpoint = None
    if not initial.startswith(OPEN_CLIP):
        checkpoint = _fetch(initial, next((tower for tower in towers if tower.get("source") == initial), {}))
    if checkpoint is not None and detect_kind(checkpoint) == OURS:
        tensors = _load_foveate(model, checkpoint)
    else:
        tensors = {name: _status(model, name) for name in model.state_dict()}
    counts = dict(Counter(tensors.values()))
    commit = None if checkpoint is None else checkpoint.commit
    localizes = any(name.startswith(_REGION_MODULES) and status == "loaded" for name, status in tensors.items())
    if checkpoint is not None and localizes:
        # Folders without this field are of releases that did not record it.
        localizes = bool(checkpoint.config().get("localizes", True))
    result = {"initial": initial, "commit": commit, "counts": counts, "localizes": localizes, "tensors": tensors}
    if run is not None:
        write_json_atomically(run / TABLE, result)
        parts = [f"{counts.get('loaded', 0)} tensors loaded"]
        for status in ("fresh", "unexpected"):
            if status in counts:
                parts.append(f"{counts[status]} {status} ({', '.join(_areas(tensors, status))})")
        say(f"initialized from {initial}: {', '.join(parts)}; listed in {run / TABLE}")
    return result


def _areas(tensors: Mapping[str, str], status: str) -> list[str]:
    """Return the modules of all tensors with this status."""
    names = (name.split(".") for name, value in tensors.items() if value == status)
    return sorted({".".join(parts[:2]) if parts[0] in _TOWERS else parts[0] for parts in names})


def _status(model: LocalizingModel, name: str) -> str:
    """Return the status of a tensor of a model whose towers were built with trained weights."""
    area, _, rest = name.partition(".")
    if area in _TOWERS:
        encoder = getattr(model, area)
        fresh = encoder.fresh_parts
        return "fresh" if fresh is None or rest.startswith(fresh) else "loaded"
    scale, bias = model.trained_start()
    # A start value in the recipe replaces the trained one, so the tensor does not count as loaded.
    if area == "log_scale" and model.recipe.logit_scale_init is None:
        return "fresh" if scale is None else "loaded"
    if area == "bias" and model.recipe.logit_bias_init is None:
        return "fresh" if bias is None else "loaded"
    return "fresh"


def _load_foveate(model: LocalizingModel, checkpoint: Checkpoint) -> dict[str, str]:
    path = checkpoint.folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; the model folder is incomplete")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error})") from error
    expected = model.state_dict()
    # All shapes are checked before anything is loaded: load_state_dict(strict=False) would stop halfway.
    for name in sorted(weights.keys() & expected.keys()):
        if weights[name].shape != expected[name].shape:
            raise UserError(
                f"initial '{checkpoint.name}': '{name}' has shape {tuple(weights[name].shape)}; expected "
                f"{tuple(expected[name].shape)} as in this recipe's model"
            )
    missing = sorted(name for name in expected.keys() - weights.keys() if name.startswith(_TOWERS))
    if missing:
        raise UserError(
            f"initial '{checkpoint.name}': {len(missing)} tensors of the towers are missing "
            f"({', '.join(missing[:3])}); "
            "image_encoder={kind: initial} text_encoder={kind: initial} uses the towers of the checkpoint"
        )
    loaded = weights.keys() & expected.keys() - _overridden(model.recipe, weights)
    model.load_state_dict({name: weights[name] for name in loaded}, strict=False)
    tensors = {name: "loaded" if name in loaded else "fresh" for name in expected}
    return tensors | {name: "unexpected" for name in sorted(weights.keys() - expected.keys())}


def _overridden(recipe: LocalizerSettings, weights: Mapping[str, Tensor]) -> set[str]:
    """Return temperatures and biases that the recipe sets itself, which are not loaded."""
    names: set[str] = set()
    # The temperature of a softmax loss is no start for a sigmoid loss: there it only works with its bias.
    if recipe.logit_scale_init is not None or (recipe.loss == "sigmoid" and "bias" not in weights):
        names |= {"log_scale", "region_log_scale"}
    if recipe.logit_bias_init is not None:
        names |= {"bias", "region_bias"}
    return names
