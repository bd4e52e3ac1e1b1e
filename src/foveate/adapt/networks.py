"""Networks that are no encoders of `foveate.vision`: of timm (but plain ViTs), transformers and torchvision.

Encoders give a token for each cell, which regions are read from. Classification needs no regions, so any network whose
pooled features are known can be adapted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from foveate.adapt.families import FAMILIES
from foveate.core.errors import UserError, choose, nearest
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading
from foveate.core.model_folder import check_tensors, read_tensors
from foveate.vision.hf.processors import processor_settings, three
from foveate.vision.lite0 import read_state
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import seeded
from foveate.vision.timm import hub_id

_LITE0 = "tf_efficientnet_lite0"
LITE0_OPTIONS = ("image_size", "geometry")
_OPTIONS = ("model", "source", "revision", "offline", "image_size", "geometry")
# The vision tower of models with two, by what config.json calls itself.
_TOWERS = {"siglip": "SiglipVisionModel"}


@dataclass(frozen=True)
class Network:
    """A network: preprocessing, arguments that it was built with, commit on the hub."""

    model: Any
    preprocess: Preprocess
    model_args: dict[str, Any]
    commit: str | None = None


def _check_fields(settings: Mapping[str, Any], names: Sequence[str]) -> None:
    for key in settings:
        if key != "kind":
            choose(key, names, "field of the backbone")


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
    _check_fields(settings, _OPTIONS)
    arguments.pop("num_classes", None)  # the head of the adapter brings the classes
    requested = settings.get("image_size")
    sides = None if requested is None else int(requested)
    built = _build(name, checkpoint, sides, seed)
    model, published = built[0], built[0].pretrained_cfg
    arguments |= built[1]
    size = sides or int((published.get("input_size") or (3, 224, 224))[-1])
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

    _check_fields(settings, LITE0_OPTIONS)
    model: Any = timm.create_model(_LITE0, pretrained=False)
    ours, state = model.state_dict(), read_state()
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


@cache  # half a second for each network that is opened
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


def _untrained(name: str, seed: int, **arguments: Any) -> Any:
    import timm

    with seeded(seed):
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def _build(name: str, checkpoint: Checkpoint | None, side: int | None, seed: int) -> tuple[Any, dict[str, Any]]:
    """Build a network for images of a side; return it with the arguments that this took."""
    # Convolutional networks take any size and know no such argument; Hiera wants a pair.
    tries: list[dict[str, Any]] = [{}] if side is None else [{"img_size": side}, {"img_size": (side, side)}, {}]
    for arguments in tries[:-1]:
        try:
            return _build_once(name, checkpoint, seed, arguments), arguments
        except TypeError:
            continue
    return _build_once(name, checkpoint, seed, tries[-1]), tries[-1]


def _build_once(name: str, checkpoint: Checkpoint | None, seed: int, arguments: dict[str, Any]) -> Any:
    return _untrained(name, seed, **arguments) if checkpoint is None else _loaded(checkpoint, **arguments)


def _loaded(checkpoint: Checkpoint, **arguments: Any) -> Any:
    """Load all tensors, the classifier's too, strictly; then remove the classifier."""
    import timm

    checkpoint.weights()  # safetensors, or an error
    try:
        model: Any = timm.create_model(f"local-dir:{checkpoint.folder}", pretrained=True, **arguments)
    except TypeError as error:
        if arguments:
            raise  # the network has no such argument; it is built without
        raise UserError(f"{checkpoint.name}: its weights do not fit the architecture ({error})") from error
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint.name}: its weights do not fit the architecture ({reason})") from error
    model.reset_classifier(0)
    return model


def open_transformers(settings: Mapping[str, Any]) -> Network:
    """Open a vision model of transformers, or a model's vision tower, strictly and without classifier.

    Args:
        settings: source (a folder or OWNER/NAME on the hub); revision, offline, geometry.

    Raises:
        UserError: it takes no images, tensors are missing, or its image processor does what `Preprocess` cannot.
    """
    import transformers

    _check_fields(settings, ("source", "revision", "offline", "geometry"))
    source = settings.get("source")
    if source is None:
        raise UserError("source of 'transformers' is missing: give a folder or OWNER/NAME on the hub")
    revision, offline = settings.get("revision"), bool(settings.get("offline"))
    checkpoint = fetch(str(source), revision=revision, offline=offline, field="source of 'transformers'")
    model_type = str(checkpoint.config().get("model_type"))
    if model_type not in {kind.model_type for kind in transformers.MODEL_MAPPING}:
        # Only vision models can be opened, so only these are proposed among hundreds of types.
        known = sorted({getattr(transformers, name).config_class.model_type for name in _known_classes()})
        raise UserError(
            f"{checkpoint.folder / 'config.json'}: unknown model_type '{model_type}'; expected that of a vision model "
            f"such as {', '.join(known)}{nearest(model_type, known)}"
        )
    config = transformers.AutoConfig.from_pretrained(str(checkpoint.folder))
    tower = _TOWERS.get(model_type)
    kind: Any = getattr(transformers, tower) if tower else transformers.MODEL_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if kind.main_input_name != "pixel_values" or (hasattr(config, "vision_config") and tower is None):
        # No nearest name: BertModel is near BeitModel, which cannot open it.
        raise UserError(
            f"{source}: a {kind.__name__} takes no images alone; expected a vision model such as "
            f"{', '.join(_known_classes())}"
        )
    checkpoint.weights()  # safetensors, or an error
    family = FAMILIES.get(f"transformers.{kind.__name__}")
    # The pooler is no part of what classifiers read, and of few checkpoints.
    unused_pooler = family is not None and "pooler.dense.weight" in family.unused
    options: dict[str, Any] = {"add_pooling_layer": False} if unused_pooler else {}
    with loading(source):
        # No pickles, which can run code when they are read; float32 whatever type the checkpoint has.
        model, report = kind.from_pretrained(
            str(checkpoint.folder), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    check_loaded(report, name=str(source))
    geometry = str(settings.get("geometry") or "letterbox")
    preprocess = Preprocess(**processor_settings(checkpoint), geometry=geometry)
    return Network(model, preprocess, {}, checkpoint.commit)


def _known_classes() -> list[str]:
    """List the classes of transformers that the table of families names."""
    return sorted(key.removeprefix("transformers.") for key in FAMILIES if key.startswith("transformers."))


def open_torchvision(settings: Mapping[str, Any], *, seed: int) -> Network:
    """Open a classifier of torchvision: untrained, or with the state dict of a safetensors file.

    Args:
        settings: model (a name such as resnet50); source (a safetensors file), image_size, geometry.

    Raises:
        UserError: an unknown name or option, or tensors that do not fit.
    """
    import torchvision

    _check_fields(settings, ("model", "source", "image_size", "geometry"))
    name, source = settings.get("model"), settings.get("source")
    models = torchvision.models
    if not isinstance(name, str):
        raise UserError("model of 'torchvision' is missing: give a name such as torchvision:resnet50")
    choose(name, models.list_models(module=models), "network of torchvision")
    weights: Any = models.get_model_weights(name)
    # The preprocessing of the published weights; reading it downloads nothing.
    published = weights.DEFAULT.transforms()
    size = int(settings.get("image_size") or published.crop_size[0])
    # These two families are built for one size; the others take any.
    sides: dict[str, Any] = {}
    multiple = 1
    if name.startswith("vit_"):
        sides, multiple = {"image_size": size}, int(name.rpartition("_")[2])
    elif name.startswith("maxvit"):
        # Its last map, of a 32nd of the image, is cut into partitions of 7 x 7.
        sides, multiple = {"input_size": (size, size)}, 224
    try:
        with seeded(seed):
            model = models.get_model(name, weights=None, **sides)
    # Torchvision's checks of patches and of partitions.
    except (AssertionError, ValueError) as error:
        if not sides:
            raise
        raise UserError(f"image_size of '{name}' must be a multiple of {multiple} (got {size})") from error
    if source is not None:
        path = Path(str(source)).expanduser()
        if path.suffix != ".safetensors":
            raise UserError(
                f"source of 'torchvision' '{source}': expected a safetensors file; torchvision publishes pickles, "
                "which are not read: convert one with safetensors.torch.save_file where you trust it"
            )
        tensors = read_tensors(path)
        check_tensors(tensors, model.state_dict(), path)
        model.load_state_dict(tensors)
    preprocess = Preprocess(
        size=size,
        mean=three(published.mean),
        std=three(published.std),
        interpolation=str(published.interpolation.value),
        geometry=str(settings.get("geometry") or "letterbox"),
    )
    return Network(model, preprocess, {})
