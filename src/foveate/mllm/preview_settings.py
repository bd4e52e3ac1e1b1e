"""Settings of a preview; free of torch, so that the command line can show them."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings


class PreviewSettings(Settings):
    """Selection of training samples for a preview."""

    stage: str | None = Field(None, description="stage of the recipe; by default the first with conversations")
    step: int = Field(1, ge=1, description="training step whose batch is loaded")
    samples: int = Field(4, ge=1, le=64, description="maximum number of the batch's samples that are drawn in full")
