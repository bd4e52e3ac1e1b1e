"""DINOv2 from transformers, with or without registers: patch tokens, and a trained projection to the joint space.

It has no text tower: pair it with any text encoder. Source of the model: DINOv2 (arXiv 2304.07193); registers: Vision
Transformers Need Registers (arXiv 2309.16588).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from foveate.core.errors import UserError
from foveate.vision.hf.towers import TransformersImageEncoder, load_tower
from foveate.vision.tower_options import FreezableImageOptions, read_options

KIND = "dinov2"


class Dinov2Options(FreezableImageOptions):
    """Options of DINOv2."""

    embed_dim: int = Field(ge=1, description="width of the new bias-free projection")
    pool: Literal["cls", "mean"] = Field(
        default="cls", description="what is projected: the class token or the mean of the patch tokens"
    )


class Dinov2ImageEncoder(TransformersImageEncoder):
    """`Dinov2Model` or `Dinov2WithRegistersModel`; class and register tokens are not among the tokens.

    Args:
        fields: see `Options`.
    """

    Options = Dinov2Options
    final_norm = "layernorm"
    interpolates_on_request = False

    def __init__(self, **fields: Any) -> None:
        from transformers import AutoConfig, AutoModel

        options = read_options(Dinov2Options, fields, kind=KIND)
        loaded = load_tower(
            KIND, _Auto(AutoModel), _AutoConfig(AutoConfig), options, types=(KIND, "dinov2_with_registers")
        )
        config = loaded.model.config
        if not isinstance(config.patch_size, int):
            raise UserError(f"{options.source or KIND}: patches are not square (got {config.patch_size} px)")
        super().__init__(loaded, options, kind=KIND, trunk=loaded.model, projection=None, projection_width=None)
        self.pool = options.pool
        self.prefix_tokens = 1 + int(getattr(config, "num_register_tokens", 0))
        if self.trunk.embeddings.mask_token is not None:
            self.trunk.embeddings.mask_token.requires_grad_(False)  # of pre-training only: nothing here uses it

    def computed_from(self) -> dict[str, Any]:
        """See `_Frozen.computed_from`; the pooling too."""
        return {**super().computed_from(), "pool": self.pool}

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`; position embeddings are interpolated as the model itself does."""
        states_BLD = self.trunk(pixel_values=pixels_B3HW).last_hidden_state
        tokens_BLD = states_BLD[:, self.prefix_tokens :]
        return tokens_BLD, states_BLD[:, 0] if self.pool == "cls" else tokens_BLD.mean(dim=1)


class _Auto:
    """`AutoModel` with the two ways in that `load_tower` uses."""

    def __init__(self, auto: Any) -> None:
        self.auto = auto

    def __call__(self, config: Any) -> Any:
        return self.auto.from_config(config)

    def from_pretrained(self, *arguments: Any, **options: Any) -> Any:
        return self.auto.from_pretrained(*arguments, **options)


class _AutoConfig:
    """`AutoConfig`, made from a mapping that names its own type."""

    def __init__(self, auto: Any) -> None:
        self.auto = auto

    def from_dict(self, config: Mapping[str, Any]) -> Any:
        return self.auto.for_model(**config)

    def from_pretrained(self, folder: str) -> Any:
        return self.auto.from_pretrained(folder)


IMAGE_ENCODER = Dinov2ImageEncoder
