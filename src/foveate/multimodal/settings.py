"""Settings of a multimodal model: tower, connector, language model, and how regions go in and come out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from foveate.core.recipes import Settings


class MultimodalSettings(Settings):
    """Parts of a multimodal model. Stored in the model folder's config."""

    tower: dict[str, Any] = Field(
        description="image encoder: `kind` and its options; with `layer` (LLaVA: -2) and `norm` a hidden layer of it"
    )
    connector: dict[str, Any] = Field(description="`kind` (cabstractor, linear, mlp, pixel_shuffle, pooled), options")
    language: dict[str, Any] = Field(description="`model_type` of transformers and fields of its config")
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
