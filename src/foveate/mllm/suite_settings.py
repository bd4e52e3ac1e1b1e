"""Settings of an evaluation; free of torch and data, so that the command line can show them."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class SuiteSettings(Settings):
    """Which questions a model is asked."""

    split: str = Field("test", description="split of the data to ask about")
    limit: int | None = Field(None, ge=1, description="maximum number of questions, drawn by the seed")
    batch_size: int = Field(16, ge=1, description="questions that are asked together")
    seed: int = Field(0, ge=0, description="of the drawn questions, the other images and the intervals")
