"""timm's own folders: config.json with `architecture`, model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from foveate.core.errors import UserError, nearest
from foveate.core.model_folder import WEIGHTS, check_tensors, read_tensors
from foveate.vision.classifier import Classifier, copy_with_weights
from foveate.vision.hf.processors import three
from foveate.vision.preprocess import Preprocess

WHAT = "config.json names an 'architecture' and 'num_classes'"


def matches(folder: Path, config: dict[str, Any]) -> bool:
    """Whether the folder is one of timm."""
    # Both other fields mark folders of transformers and of Foveate, which may name an architecture as well.
    return isinstance(config.get("architecture"), str) and "model_type" not in config and "kind" not in config


def load(folder: Path, config: dict[str, Any]) -> Classifier:
    """Build the architecture and load its weights strictly, its classifier included."""
    import timm

    name, classes = config["architecture"], config.get("num_classes")
    if not isinstance(classes, int) or classes < 2:
        raise UserError(f"{folder / 'config.json'}: field 'num_classes' must be at least 2 (got {classes})")
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
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    check_tensors(tensors, network.state_dict(), path)
    network.load_state_dict(tensors, strict=True)
    # What the folder publishes wins over the defaults that timm knows of the architecture.
    settings = {**network.pretrained_cfg, **published}
    network.pretrained_cfg = settings
    size = settings.get("input_size", (3, 224, 224))
    # Other numbers of channels are no photographs: such a network takes arrays as they are.
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
    """Copy the source's folder with the present weights."""
    copy_with_weights(classifier, source, target)


def _head(network: Any) -> str:
    """Return the name of the module that `get_classifier` returns."""
    head: nn.Module = network.get_classifier()
    # By identity: the attribute differs from architecture to architecture (head, fc, classifier).
    return next((name for name, module in network.named_modules() if module is head), "head")


def _names(config: dict[str, Any], classes: int, folder: Path) -> list[str]:
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if names is None:
        return [str(number) for number in range(classes)]
    if len(names) != classes:
        raise UserError(f"{folder / 'config.json'}: field 'label_names' has {len(names)} names for {classes} classes")
    return [str(name) for name in names]
