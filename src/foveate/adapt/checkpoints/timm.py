"""timm's own folders: config.json with `architecture`, model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from foveate.adapt.checkpoints.foveate import copy_with_weights
from foveate.adapt.classifier import Classifier, load_strictly
from foveate.core.errors import UserError, nearest
from foveate.vision.hf.processors import three
from foveate.vision.preprocess import Preprocess

WHAT = "config.json names an 'architecture' and 'num_classes'"


def reads(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder is timm's."""
    return isinstance(config.get("architecture"), str) and "model_type" not in config and "kind" not in config


def load(folder: Path, config: dict[str, Any]) -> Classifier:
    """Builds the architecture and fills it strictly, its classifier included."""
    import timm

    name, classes = config["architecture"], config.get("num_classes")
    if not isinstance(classes, int) or classes < 2:
        raise UserError(f"{folder / 'config.json'}: num_classes is {classes}; a classifier has at least 2")
    published = config.get("pretrained_cfg") or {}
    arguments: dict[str, Any] = {**(config.get("model_args") or {}), "num_classes": classes}
    if config.get("global_pool"):
        arguments.setdefault("global_pool", config["global_pool"])
    try:
        network: Any = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{folder}: timm cannot build '{name}' ({reason}){nearest(name, timm.list_models())}"
        ) from error
    path = folder / "model.safetensors"
    try:
        load_strictly(network, load_file(path), name=str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); pickles are not read") from error
    settings = {**network.pretrained_cfg, **published}
    network.pretrained_cfg = settings
    size = settings.get("input_size", (3, 224, 224))
    preprocess = None
    if size[0] == 3:
        preprocess = Preprocess(
            size=int(size[-1]),
            mean=three(settings.get("mean") or (0.5, 0.5, 0.5)),
            std=three(settings.get("std") or (0.5, 0.5, 0.5)),
            interpolation=settings.get("interpolation") or "bicubic",
            geometry="center_crop",
        )
    return Classifier(
        network, head_name=_head(network), names=_names(config, classes, folder), preprocess=preprocess, format="timm"
    )


def save(classifier: Classifier, source: Path | None, target: Path) -> None:
    """The source's folder with other weights."""
    copy_with_weights(classifier, source, target)


def _head(network: Any) -> str:
    """The name of the module that `get_classifier` gives."""
    head: nn.Module = network.get_classifier()
    return next((name for name, module in network.named_modules() if module is head), "head")


def _names(config: dict[str, Any], classes: int, folder: Path) -> list[str]:
    said = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if said is None:
        return [str(number) for number in range(classes)]
    if len(said) != classes:
        raise UserError(f"{folder / 'config.json'}: {len(said)} label_names for {classes} classes")
    return [str(name) for name in said]
