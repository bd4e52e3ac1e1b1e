"""DINOv2 from transformers, with or without registers: patch tokens, and a trained projection to the joint space.

It has no text tower: pair it with any text encoder. Source of the model: DINOv2 (arXiv 2304.07193); registers: Vision
Transformers Need Registers (arXiv 2309.16588).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.records.geometry import InputSize
from foveate.vision.hf.loading import load_tower
from foveate.vision.hf.towers import TransformersImageEncoder

KIND = "dinov2"
POOLS = ("cls", "mean")


class Dinov2ImageEncoder(TransformersImageEncoder):
    """`Dinov2Model` or `Dinov2WithRegistersModel`; class and register tokens are not among the tokens.

    Args:
        source, revision, offline, image_size, geometry, frozen, precision, checkpointing, config, preprocess: see
            `foveate.vision.hf.clip`.
        embed_dim: E, of the new bias-free projection.
        pool: what is projected: the class token ("cls") or the mean of the patch tokens ("mean").
    """

    final_norm = "layernorm"
    interpolates_on_request = False

    def __init__(
        self,
        *,
        embed_dim: int,
        source: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        pool: str = "cls",
        image_size: InputSize | None = None,
        geometry: str = "letterbox",
        frozen: bool = False,
        precision: str = "float32",
        checkpointing: bool = False,
        config: Mapping[str, Any] | None = None,
        preprocess: Mapping[str, Any] | None = None,
    ) -> None:
        from transformers import AutoConfig, AutoModel

        choose(pool, POOLS, f"pool of '{KIND}'")
        found = load_tower(
            KIND, _Auto(AutoModel), _AutoConfig(AutoConfig), types=(KIND, "dinov2_with_registers"), source=source,
            revision=revision, offline=offline, config=config,
        )  # fmt: skip
        settings = found.model.config
        if not isinstance(settings.patch_size, int):
            raise UserError(f"{source or KIND}: patches of {settings.patch_size} px, allowed are square ones")
        super().__init__(
            found, kind=KIND, trunk=found.model, own=None, own_dim=None, embed_dim=embed_dim, image_size=image_size,
            geometry=geometry, preprocess=preprocess, frozen=frozen, precision=precision, checkpointing=checkpointing,
        )  # fmt: skip
        self.pool = pool
        self.prefix_tokens = 1 + int(getattr(settings, "num_register_tokens", 0))
        if self.trunk.embeddings.mask_token is not None:
            self.trunk.embeddings.mask_token.requires_grad_(False)  # of pre-training only: nothing here uses it

    def computed_from(self) -> dict[str, Any]:
        """What is pooled too."""
        return {**super().computed_from(), "pool": self.pool}

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`; position embeddings are interpolated as the model itself does."""
        said = self.trunk(pixel_values=pixels_B3HW).last_hidden_state
        tokens_BLD = said[:, self.prefix_tokens :]
        return tokens_BLD, said[:, 0] if self.pool == "cls" else tokens_BLD.mean(dim=1)


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
