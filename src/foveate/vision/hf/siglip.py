"""SigLIP's towers from transformers: `SiglipModel`, which SigLIP 2 of fixed resolution uses as well.

The image embedding is transformers' own pooled output of the attention-pooling head, the text embedding its pooled
output of the last token. Source of the model: Sigmoid Loss for Language Image Pre-Training (arXiv 2303.15343).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.records.geometry import InputSize
from foveate.vision.backbones import PROJECTIONS
from foveate.vision.hf.loading import load_tower
from foveate.vision.hf.towers import TransformersImageEncoder, TransformersTextEncoder

KIND = "siglip"
_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")


class SiglipImageEncoder(TransformersImageEncoder):
    """The image tower of SigLIP: patch tokens after `post_layernorm`, pooled by attention with one learned query.

    Args:
        source, revision, offline, embed_dim, image_size, geometry, frozen, precision, checkpointing, config,
            preprocess: see `foveate.vision.hf.clip`.
        projection: "own": the head's output is the embedding; "new": an untrained bias-free projection follows it.
    """

    def __init__(
        self,
        *,
        source: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        embed_dim: int | None = None,
        projection: str = "own",
        image_size: InputSize | None = None,
        geometry: str = "letterbox",
        frozen: bool = False,
        precision: str = "float32",
        checkpointing: bool = False,
        config: Mapping[str, Any] | None = None,
        preprocess: Mapping[str, Any] | None = None,
    ) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        own = choose(projection, PROJECTIONS, f"projection of '{KIND}'") == "own"
        found = load_tower(
            KIND, SiglipVisionModel, SiglipVisionConfig, types=_TYPES, source=source, revision=revision,
            offline=offline, config=config,
        )  # fmt: skip
        settings = found.model.config
        if not settings.vision_use_head:
            raise UserError(f"{source or KIND}: it has no pooling head (vision_use_head is false)")
        super().__init__(
            found, kind=KIND, trunk=found.model, own=nn.Identity() if own else None, own_dim=settings.hidden_size,
            embed_dim=embed_dim, image_size=image_size, geometry=geometry, preprocess=preprocess, frozen=frozen,
            precision=precision, checkpointing=checkpointing,
        )  # fmt: skip

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`."""
        said = self.trunk(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        return said.last_hidden_state, said.pooler_output

    def pool_regions(self, pooled_RD: Tensor) -> Tensor:
        """The head over one token."""
        return self.trunk.head(pooled_RD[:, None])


class SiglipTextEncoder(TransformersTextEncoder):
    """The text tower of SigLIP with the tokenizer of its folder (SentencePiece, or SigLIP 2's Gemma).

    Texts are padded to the full length and no token is masked, as in training: the pooled token may be padding.

    Args:
        source, revision, offline, embed_dim, projection, frozen, precision, checkpointing, config, tokenizer: see
            `foveate.vision.hf.clip`.
    """

    def __init__(
        self,
        *,
        source: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        embed_dim: int | None = None,
        projection: str = "own",
        frozen: bool = False,
        precision: str = "float32",
        checkpointing: bool = False,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
    ) -> None:
        from transformers import SiglipTextConfig, SiglipTextModel

        own = choose(projection, PROJECTIONS, f"projection of '{KIND}'") == "own"
        found = load_tower(
            KIND, SiglipTextModel, SiglipTextConfig, types=_TYPES, source=source, revision=revision,
            offline=offline, config=config,
        )  # fmt: skip
        width = found.model.config.projection_size
        super().__init__(
            found, kind=KIND, trunk=found.model, own=nn.Identity() if own else None, own_dim=width, pooled_width=width,
            embed_dim=embed_dim, tokenizer=tokenizer, frozen=frozen, precision=precision, checkpointing=checkpointing,
        )  # fmt: skip

    def run(self, ids_BL: Tensor) -> Tensor:
        """Ids to the pooled last token behind the tower's own head."""
        return self.trunk(input_ids=ids_BL).pooler_output


IMAGE_ENCODER = SiglipImageEncoder
TEXT_ENCODER = SiglipTextEncoder
