"""Image processors of transformers and configurations of timm, read as `Preprocess`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint
from foveate.records.geometry import InputSize
from foveate.vision.preprocess import Preprocess
from foveate.vision.tower_options import ImageTowerOptions

_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def processor_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the image processor's settings with the defaults of its class: size, mean, std, interpolation.

    Raises:
        UserError: the folder has none, or it does what `Preprocess` cannot.
    """
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(str(checkpoint.folder))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"{checkpoint.folder}: no preprocessor_config.json that transformers reads; copy it there, or give the "
            "field preprocess: {size: ..., mean: [...], std: [...]}"
        ) from error
    # With a crop, `size` is only the resize in front of it; the network sees the crop.
    sides = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    # `Preprocess` always divides by 255, so a processor that scales otherwise cannot be followed.
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"{checkpoint.folder}: unsupported scale of pixels (got {factor}); expected 1/255")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    resample = int(processor.resample)
    if resample not in _RESAMPLING:
        raise UserError(f"{checkpoint.folder}: unsupported resampling (got {resample}); expected one of {_RESAMPLING}")
    return {
        "size": _size(sides, str(checkpoint.folder)),
        "mean": three(mean),
        "std": three(std),
        "interpolation": _RESAMPLING[resample],
    }


def _pair(size: InputSize) -> tuple[int, int]:
    """Return height and width of an input that may be given as one side."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def _size(sides: Any, where: str) -> InputSize:
    values = {key: getattr(sides, key, None) for key in ("height", "width", "shortest_edge", "longest_edge")}
    # Processors of transformers give a mapping, or a SizeDict, which has attributes but is no Mapping.
    if isinstance(sides, Mapping):
        values = {key: sides.get(key) for key in values}
    if values["height"] and values["width"]:
        return int(values["height"]), int(values["width"])
    sides_px = {value for value in values.values() if value is not None}
    if len(sides_px) != 1:
        raise UserError(
            f"{where}: not an image size (got {values}); expected height and width, or one side of a square"
        )
    return int(sides_px.pop())


def three(values: Sequence[float]) -> tuple[float, float, float]:
    """Convert three numbers, one a channel, to floats."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def preprocess_for(
    settings: Mapping[str, Any], *, image_size: InputSize | None, patch: int, geometry: str, kind: str
) -> Preprocess:
    """Build the `Preprocess` of an encoder with square patches of `patch` pixels.

    The checkpoint's own size is rounded down to whole patches, so that the grid covers the whole image (384 px in
    patches of 14 become 378: the same 27 x 27 tokens, no strip of pixels without one).

    Raises:
        UserError: for an `image_size` that is not a multiple of the patch.
    """
    if image_size is not None and any(side < patch or side % patch for side in _pair(image_size)):
        raise UserError(f"image_size of '{kind}': not a multiple of its patch of {patch} px (got {image_size})")
    height, width = _pair(settings["size"] if image_size is None else image_size)
    return Preprocess(
        # A processor's own size may leave a remainder, such as 384 px with patches of 14, which gets no token.
        size=(height // patch * patch, width // patch * patch),
        mean=three(settings["mean"]),
        std=three(settings["std"]),
        interpolation=settings["interpolation"],
        geometry=geometry,
    )


def given_preprocess(values: Mapping[str, Any], *, image_size: InputSize | None, geometry: str) -> Preprocess:
    """Read the field `preprocess`; `geometry` where it has none.

    Raises:
        UserError: it is not complete, or `image_size` contradicts it.
    """
    preprocess = Preprocess.from_dict({"geometry": geometry, **values})
    if image_size is not None and _pair(image_size) != (preprocess.height, preprocess.width):
        raise UserError(
            f"image_size: contradicts preprocess.size {preprocess.size} (got {image_size}); expected one of the two"
        )
    return preprocess


def preprocess_of(checkpoint: Checkpoint | None, options: ImageTowerOptions, *, patch: int, kind: str) -> Preprocess:
    """Read the option `preprocess`, else the checkpoint's image processor."""
    size, geometry = options.image_size, options.geometry
    if options.preprocess is not None:
        return given_preprocess(options.preprocess, image_size=size, geometry=geometry)
    if checkpoint is None:
        raise UserError(f"'{kind}': a model built from a config needs the field preprocess")
    read = processor_settings(checkpoint)
    return preprocess_for(read, image_size=size, patch=patch, geometry=geometry, kind=kind)
