"""Settings of asking; free of torch, so that the command line can show them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveate.core.recipes import Settings

Unit = Literal["pixels", "0-1", "0-1000"]


class AskSettings(Settings):
    """How a question is answered."""

    model: str = Field(
        default="mini",
        description="a shipped model (mini, mini-ferret or smollm2-mini), a model folder of foveate mllm train, or a "
        "folder or hub id of an image-text-to-text model of transformers",
    )
    max_tokens: int = Field(default=64, ge=1, le=4096, description="longest answer in tokens")
    unit: Unit = Field(
        default="pixels",
        description="of the numbers of boxes, points and strokes: pixels of the image after its EXIF rotation, or "
        "fractions of its sides, 0 to 1 or 0 to 1000",
    )
