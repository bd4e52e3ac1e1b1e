"""Architecture settings of a localizing model; recipes that train one add data and training."""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from foveate.core.recipes import Settings


class PrompterSettings(Settings):
    """The Prompter (CLOC section 3.2 of the paper's method) and the box head."""

    pool: Literal["all", "prompt"] = Field("all", description="mean over all tokens (paper) or the prompt's only")
    image_pos: Literal["sincos", "none"] = Field("sincos", description="patch-center sinusoid inside the Prompter")
    norm: Literal["pre", "post"] = Field("pre", description="place of the layer norms")
    coordinate_scale: float = Field(100.0, gt=0, description="factor of coordinates in [0, 1] in the sinusoid")
    temperature: float = Field(10_000.0, gt=1, description="longest period factor of the sinusoid")
    layout: Literal["blocked", "interleaved", "timescale"] = Field("blocked", description="order of sin and cos")
    corner_embedding: bool = Field(True, description="learned vectors that tell the two corners apart")
    text_prompt_normalized: bool = Field(False, description="phrase prompts of unit length")


class RegionSettings(Settings):
    """Region encoder, and weights and options of the region losses (CLOC, equations 2 to 4)."""

    method: Literal["none", "prompter", "roi"] = Field(
        "prompter", description="none = CLIP alone; prompter = CLOC; roi = RoI-Align instead of the Prompter"
    )
    prompter: PrompterSettings = PrompterSettings()
    lambda_scale: float = Field(1.0, ge=0, description="factor of the share of labeled images")
    grounding_weight: float = Field(1.0, ge=0, description="weight of the box loss beside the region loss; paper 1")
    filter: Literal["embedding", "exact", "none"] = Field(
        "embedding", description="negatives left out: text cosine above the threshold, same phrase, none"
    )
    # Up to 1.01, because a threshold that no cosine reaches turns the filter off.
    filter_threshold: float = Field(0.9, ge=-1, le=1.01, description="text cosine, strict")
    normalize: Literal["regions", "fixed"] = Field("regions", description="divide by the regions or by M N")
    own_temperature: bool = Field(False, description="a temperature of the region loss's own")
    row_chunk: int | None = Field(None, ge=1, description="rows of the losses' matrices at a time, to save memory")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="region-text loss: softmax = equation 2; sigmoid = each pair by itself (SigLIP)"
    )


class LocalizerSettings(Settings):
    """The encoders, the module that embeds regions, and the losses' kinds, which decide what parameters there are."""

    image_encoder: dict[str, Any] = Field(description="`kind` and the fields of that encoder")
    text_encoder: dict[str, Any] = Field(description="`kind` and the fields of that encoder")
    embed_dim: int = Field(ge=0, description="E, width of the joint embedding; 0 = that of `initial`")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="image-text loss: softmax = CLIP's; sigmoid = each pair by itself (SigLIP)"
    )
    logit_scale_init: float | None = Field(
        None, gt=0, description="1 / temperature at the start; by default that of trained towers, else 1 / 0.07 or 10"
    )
    logit_bias_init: float | None = Field(
        None, description="sigmoid: bias at the start; by default that of trained towers, else -10"
    )
    logit_scale_max: float = Field(100.0, gt=0, description="softmax: largest 1 / temperature")
    regions: RegionSettings = RegionSettings()

    def initial_seed(self) -> int:
        """Return the seed of the encoders' first weights, where they have none yet."""
        return 0

    @model_validator(mode="after")
    def _encoders_have_a_kind(self) -> Self:
        for name in ("image_encoder", "text_encoder"):
            if "kind" not in getattr(self, name):
                raise ValueError(f"{name}: 'kind' is missing; expected for example lite0 or open_clip")
        if self.embed_dim == 0 and self.image_encoder["kind"] != "initial":
            raise ValueError("embed_dim: 0 means the width of `initial` and needs image_encoder: {kind: initial}")
        if self.logit_bias_init is not None and "sigmoid" not in (self.loss, self.regions.loss):
            warnings.warn("logit_bias_init has no effect with loss 'softmax'", stacklevel=2)
        return self
