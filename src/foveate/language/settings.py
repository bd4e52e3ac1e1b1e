"""Options of LoRA and of sparse layers; free of torch, so that recipes and the command line can show them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from foveate.core.recipes import Settings

# Options of LoRA; free of torch, so that recipes and the command line can show them.


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


# Options of sparse layers; free of torch, so that recipes can be read without it.


class SparseOptions(Settings):
    """Options of sparse layers; the defaults are those of MM1.5 where it says any."""

    num_experts: int = Field(default=64, ge=2, description="experts of a sparse layer; each token gets two of them")
    init: Literal["copy_dense", "fresh"] = Field(
        default="copy_dense", description="experts start as copies of the dense MLP, or untrained"
    )
    width_divisor: int = Field(
        default=1, ge=1, description="an expert's hidden width is the dense MLP's over this; 2 keeps active parameters"
    )
    capacity_factor: float | None = Field(
        default=None, gt=0, description="tokens of an expert over tokens / experts (AXLearn: 2); unset = all are served"
    )
    balance_weight: float = Field(default=0.01, ge=0, description="of the balance loss, summed over layers")
    z_weight: float = Field(default=0.001, ge=0, description="of the router's z loss, summed over layers")

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if self.init == "copy_dense" and self.width_divisor != 1:
            raise ValueError(
                f"width_divisor: copies of the dense MLP have its width (got {self.width_divisor}); expected 1, or "
                "init 'fresh'"
            )
        return self
