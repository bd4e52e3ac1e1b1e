"""Options of encoders over other libraries' networks, declared once: recipes, model folders and docs read them here."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field

from foveate.core.recipes import Settings, validate
from foveate.records.geometry import InputSize

Projection = Literal["own", "new"]
Precision = Literal["float32", "bfloat16", "auto"]


class TowerOptions(Settings):
    """Options of every tower: where its network comes from."""

    source: str | None = Field(default=None, description="folder, or OWNER/NAME on the hub, with safetensors weights")
    revision: str | None = Field(
        default=None, description="commit, tag or branch of a hub repository; the model folder records the commit"
    )
    offline: bool = Field(default=False, description="look into the hub's cache only")
    embed_dim: int | None = Field(
        default=None, ge=1, description="width of the joint embedding; trained weights have their own, which must agree"
    )
    checkpointing: bool = Field(default=False, description="keep no activations inside layers: less memory, slower")
    config: dict[str, Any] | None = Field(
        default=None, description="of `architecture()`, to build a saved tower again without its first weights"
    )


class ImageTowerOptions(TowerOptions):
    """Options of image towers: what the network sees."""

    image_size: InputSize | None = Field(
        default=None,
        description="side of the input in pixels, or [height, width], in whole patches; unset = the checkpoint's",
    )
    # Letterboxing is the default because boxes at the margins would be lost in a crop of the middle.
    geometry: str = Field(
        default="letterbox",
        description="letterbox, center_crop (what most weights were trained on) or stretch (aspect not kept)",
    )
    preprocess: dict[str, Any] | None = Field(
        default=None, description="of `architecture()`: size, mean, std, ... instead of the checkpoint's processor"
    )


class TextTowerOptions(TowerOptions):
    """Options of text towers: what turns texts into ids."""

    tokenizer: str | None = Field(
        default=None, description="folder of a tokenizer's files in the format of transformers; unset = the source's"
    )


class FreezableOptions(TowerOptions):
    """Options of towers whose results may be computed once and kept on disk."""

    frozen: bool = Field(default=False, description="train the projection only, and keep the tower's results on disk")
    precision: Precision = Field(default="float32", description="of a frozen tower: float32, bfloat16 or auto")


class FreezableImageOptions(ImageTowerOptions, FreezableOptions):
    """Options of image towers that may be frozen."""


class FreezableTextOptions(TextTowerOptions, FreezableOptions):
    """Options of text towers that may be frozen."""


class ProjectedImageOptions(FreezableImageOptions):
    """Options of image towers that come with a projection to the joint space."""

    projection: Projection = Field(default="own", description="the checkpoint's, or new for an untrained one")


class ProjectedTextOptions(FreezableTextOptions):
    """Options of text towers that come with a projection to the joint space."""

    projection: Projection = Field(default="own", description="the checkpoint's, or new for an untrained one")


O = TypeVar("O", bound=TowerOptions)  # noqa: E741


def read_options(model: type[O], fields: dict[str, Any], *, kind: str) -> O:
    """Check the options of an encoder.

    Raises:
        UserError: for an unknown or missing field or a wrong value, with the nearest match.
    """
    return validate(model, fields, where=f"encoder '{kind}'")
