"""SigLIP's towers from transformers: `SiglipModel`, which SigLIP 2 of fixed resolution uses as well.

The image embedding is transformers' own pooled output of the attention-pooling head, the text embedding its pooled
output of the last token. Source of the model: Sigmoid Loss for Language Image Pre-Training (arXiv 2303.15343).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.hf.towers import TransformersImageEncoder, TransformersTextEncoder, load_tower
from foveate.vision.tower_options import ProjectedImageOptions, ProjectedTextOptions, read_options

KIND = "siglip"
_TYPES = ("siglip", "siglip_vision_model", "siglip_text_model")


class SiglipImageEncoder(TransformersImageEncoder):
    """The image tower of SigLIP: patch tokens after `post_layernorm`, pooled by attention with one learned query.

    Args:
        fields: see `Options`. With projection "own" the head's output is the embedding; with "new" an untrained
            bias-free projection follows it.
    """

    Options = ProjectedImageOptions
    trained_geometry = "stretch"

    @staticmethod
    def read_joint_width(folder: str) -> int:
        """See `TransformersImageEncoder.read_joint_width`."""
        from transformers import SiglipVisionConfig

        return int(SiglipVisionConfig.from_pretrained(folder).hidden_size)

    def __init__(self, **fields: Any) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        options = read_options(ProjectedImageOptions, fields, kind=KIND)
        projection = nn.Identity() if options.projection == "own" else None
        loaded = load_tower(KIND, SiglipVisionModel, SiglipVisionConfig, options, types=_TYPES)
        config = loaded.model.config
        if not getattr(config, "vision_use_head", True):  # transformers before 5.23 has no such default
            raise UserError(f"{options.source or KIND}: no pooling head (vision_use_head is false)")
        super().__init__(
            loaded, options, kind=KIND, trunk=loaded.model, projection=projection, projection_width=config.hidden_size
        )

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`."""
        outputs = self.trunk(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        return outputs.last_hidden_state, outputs.pooler_output

    def pool_regions(self, pooled_RD: Tensor) -> Tensor:
        """Apply the pooling head to one token."""
        # Attention over a single token returns its value; the head's MLP follows.
        return self.trunk.head(pooled_RD[:, None])


class SiglipTextEncoder(TransformersTextEncoder):
    """The text tower of SigLIP with the tokenizer of its folder (SentencePiece, or SigLIP 2's Gemma).

    Texts are padded to the full length and no token is masked, as in training: the pooled token may be padding.

    Args:
        fields: see `Options`.
    """

    Options = ProjectedTextOptions

    def __init__(self, **fields: Any) -> None:
        from transformers import SiglipTextConfig, SiglipTextModel

        options = read_options(ProjectedTextOptions, fields, kind=KIND)
        projection = nn.Identity() if options.projection == "own" else None
        loaded = load_tower(KIND, SiglipTextModel, SiglipTextConfig, options, types=_TYPES)
        width = loaded.model.config.projection_size
        super().__init__(
            loaded,
            options,
            kind=KIND,
            trunk=loaded.model,
            projection=projection,
            projection_width=width,
            pooled_width=width,
        )

    def run(self, ids_BL: Tensor) -> Tensor:
        """Return the last token behind the tower's own head, [B, P]."""
        return self.trunk(input_ids=ids_BL).pooler_output


IMAGE_ENCODER = SiglipImageEncoder
TEXT_ENCODER = SiglipTextEncoder
