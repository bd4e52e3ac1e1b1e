"""Settings of `foveate captioner evaluate`; free of torch, so that help is shown at once."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class EvaluationSettings(Settings):
    """`foveate captioner evaluate MODEL`."""

    split: str = Field("test", description="split whose images are captioned")
    limit: int | None = Field(None, ge=1, description="maximum number of images, drawn by the seed")
    shuffled: bool = Field(
        False,
        description="caption another image in the place of each: a control whose captions are less often true",
    )
