"""Networks of timm that are not plain ViTs, such as ResNets: features without a token for each patch.

`foveate.vision.timm` opens plain ViTs, whose tokens regions are read from. Classification needs no regions, so methods
that need no transformer blocks work with these too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from foveate.core.errors import UserError, choose
from foveate.vision.hf.processors import three
from foveate.vision.hub import Checkpoint, fetch
from foveate.vision.lite0_network import read_package_state
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import seeded
from foveate.vision.timm import hub_id

_LITE0 = "tf_efficientnet_lite0"
LITE0_OPTIONS = ("image_size", "geometry")
_OPTIONS = ("model", "source", "revision", "offline", "image_size", "geometry")


@dataclass(frozen=True)
class Network:
    """A network of timm without its classifier: preprocessing, arguments that it was built with, commit on the hub."""

    model: Any
    preprocess: Preprocess
    model_args: dict[str, Any]
    commit: str | None = None


def open_network(settings: Mapping[str, Any], *, seed: int) -> Network | None:
    """Open the network of timm that settings name; None where `foveate.vision.timm` opens it, or refuses it.

    Args:
        settings: model (an architecture, untrained) or source (a folder of timm, OWNER/NAME or NAME.TAG on the hub);
            revision, offline, image_size, geometry.

    Raises:
        UserError: an unknown option, or weights that do not fit.
    """
    name, arguments, checkpoint = settings.get("model"), dict[str, Any](), None
    source = settings.get("source")
    if source is not None:
        # A single file is for `foveate.vision.timm`, which reads it or says why not.
        if Path(str(source)).expanduser().is_file():
            return None
        checkpoint = fetch(
            hub_id(str(source)),
            revision=settings.get("revision"),
            offline=bool(settings.get("offline")),
            field="source of 'timm'",
        )
        config = checkpoint.config()
        name, arguments = config.get("architecture"), dict(config.get("model_args") or {})
    if not isinstance(name, str) or not _is_other(name):
        return None
    for key in settings:
        if key != "kind":
            choose(key, _OPTIONS, "field of the backbone")
    arguments.pop("num_classes", None)  # the head of the adapter brings the classes
    model = _untrained(name, seed) if checkpoint is None else _loaded(checkpoint)
    published = model.pretrained_cfg
    size = int(settings.get("image_size") or (published.get("input_size") or (3, 224, 224))[-1])
    model.pretrained_cfg = {**published, "input_size": (3, size, size)}  # saved with the model
    preprocess = Preprocess(
        size=size,
        mean=three(published.get("mean") or (0.5, 0.5, 0.5)),
        std=three(published.get("std") or (0.5, 0.5, 0.5)),
        interpolation=published.get("interpolation") or "bicubic",
        geometry=str(settings.get("geometry") or "letterbox"),
    )
    return Network(model, preprocess, arguments, None if checkpoint is None else checkpoint.commit)


def open_lite0(settings: Mapping[str, Any]) -> Network:
    """Open EfficientNet-Lite0 with the package's ImageNet weights as timm's network, every layer of it tunable.

    The image encoder of the same name has these convolutions frozen, with batch norms folded in, below a projection
    that is drawn at random: features for training with a text tower, not for a classifier.

    Args:
        settings: image_size (224 by default) and geometry.

    Raises:
        UserError: an unknown option, or weights that are missing or others.
    """
    import timm

    for key in settings:
        if key != "kind":
            choose(key, LITE0_OPTIONS, "field of the backbone")
    model: Any = timm.create_model(_LITE0, pretrained=False)
    ours, state = model.state_dict(), read_package_state()
    # Both list the layers in the order of the forward pass, each under names of its own.
    pairs = list(zip(ours.items(), state.values(), strict=True))
    assert all(value.shape == other.shape for (_, value), other in pairs), "the architecture is that of the package"
    model.load_state_dict({name: other for (name, _), other in pairs})
    model.reset_classifier(0)
    size = int(settings.get("image_size") or 224)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, size, size)}  # saved with the model
    half = (0.5, 0.5, 0.5)  # pixels in [-1, 1], as the network was trained on
    geometry = str(settings.get("geometry") or "letterbox")
    return Network(model, Preprocess(size=size, mean=half, std=half, geometry=geometry), {}, None)


def _is_other(name: str) -> bool:
    """Whether timm has an architecture of this name that is not a `VisionTransformer`."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    if not timm.is_model(name):
        return False
    try:
        # Shapes only: building a large architecture for a question about its class would take seconds.
        with torch.device("meta"):
            return not isinstance(timm.create_model(name, pretrained=False, num_classes=0), VisionTransformer)
    except (RuntimeError, NotImplementedError):  # some architectures read values of tensors while they are built
        return not isinstance(_untrained(name, 0), VisionTransformer)


def _untrained(name: str, seed: int) -> Any:
    import timm

    with seeded(seed):
        return timm.create_model(name, pretrained=False, num_classes=0)


def _loaded(checkpoint: Checkpoint) -> Any:
    """Load all tensors, the classifier's too, strictly; then remove the classifier."""
    import timm

    checkpoint.weights()  # safetensors, or an error
    try:
        model: Any = timm.create_model(f"local-dir:{checkpoint.folder}", pretrained=True)
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint.name}: its weights do not fit the architecture ({reason})") from error
    model.reset_classifier(0)
    return model
