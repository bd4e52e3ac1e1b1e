"""Settings of a multimodal model: tower, connector, language model, and how regions go in and come out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from foveate.core.recipes import Settings
from foveate.multimodal.assemble import AssemblyOptions


class MultimodalSettings(Settings):
    """Parts of a multimodal model. Stored in the model folder's config."""

    tower: dict[str, Any] = Field(
        description="image encoder: `kind` and its options; with `layer` (LLaVA: -2) and `norm` a hidden layer of it"
    )
    connector: dict[str, Any] = Field(description="`kind` (cabstractor, linear, mlp, pixel_shuffle, pooled), options")
    language: dict[str, Any] = Field(description="`model_type` of transformers and fields of its config")
    assembly: AssemblyOptions | None = Field(
        default=None, description="tiles and overview of images, and the text between them; unset = one view an image"
    )
    frame: Literal["image", "canvas"] = Field(
        default="image",
        description="what coordinates in text are relative to: the original image or its padded canvas",
    )
    regions: Literal["text", "tokens"] = Field(
        default="text",
        description="text = coordinates in digits, 0 to 999; tokens = one token that carries the mean of its patches",
    )
    phrase_maps: bool = Field(
        default=False, description="add to each text token the map of where it is seen (not in the paper)"
    )
    box_head: bool = Field(
        default=False,
        description="boxes of answers from a head on the phrase's map, not in digits (not in the paper)",
    )
    max_images: int = Field(default=8, ge=1, description="most images of one question")

    @model_validator(mode="after")
    def _check_views(self) -> MultimodalSettings:
        if self.assembly is None:
            if self.frame == "canvas":
                raise ValueError("frame: one view an image has no canvas (got canvas); expected image, or assembly")
            return self
        # A region's patches, maps and boxes are read off the one view that shows all of the image.
        for name, value, expected in (
            ("regions", self.regions, "text"),
            ("phrase_maps", self.phrase_maps, False),
            ("box_head", self.box_head, False),
        ):
            if value != expected:
                raise ValueError(f"{name}: needs one view an image (got {value}); expected {expected} with assembly")
        return self
