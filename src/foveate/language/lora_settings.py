"""Options of LoRA; free of torch, so that recipes and the command line can show them."""

from __future__ import annotations

from pydantic import Field

from foveate.core.recipes import Settings

ALL_LINEAR = "all-linear"


class LoraOptions(Settings):
    """Options of LoRA on a language model."""

    rank: int = Field(default=16, ge=1, description="r, of the added matrices")
    alpha: float | None = Field(default=None, gt=0, description="the pair is multiplied by alpha / rank; unset = rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the pair's input, in training")
    targets: list[str] = Field(
        default=[ALL_LINEAR],
        min_length=1,
        description="names of linear layers, or their ends as q_proj; all-linear is all but the head",
    )
