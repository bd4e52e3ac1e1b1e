"""CLIP's towers from transformers: a folder or hub repository of `CLIPModel`, or of one of its towers alone.

The image embedding is transformers' own `image_embeds`, the text embedding its `text_embeds`. Tokens are the patch
tokens after `post_layernorm`, which transformers applies to the class token only. Source of the model: Learning
Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.vision.hf.loading import load_tower
from foveate.vision.hf.towers import TransformersImageEncoder, TransformersTextEncoder
from foveate.vision.tower_options import ProjectedImageOptions, ProjectedTextOptions, read_options

KIND = "clip"
_TYPES = ("clip", "clip_vision_model", "clip_text_model")


class TransformersClipImageEncoder(TransformersImageEncoder):
    """The image tower of CLIP.

    Args:
        fields: see `Options`.
    """

    Options = ProjectedImageOptions
    prefix_tokens = 1

    @staticmethod
    def read_joint_width(folder: str) -> int:
        """See `TransformersImageEncoder.read_joint_width`."""
        from transformers import AutoConfig

        return int(AutoConfig.from_pretrained(folder).projection_dim)

    def __init__(self, **fields: Any) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

        options = read_options(ProjectedImageOptions, fields, kind=KIND)
        has_projection = options.projection == "own"
        model_class = CLIPVisionModelWithProjection if has_projection else CLIPVisionModel
        loaded = load_tower(KIND, model_class, CLIPVisionConfig, options, types=_TYPES)
        super().__init__(
            loaded,
            options,
            kind=KIND,
            trunk=loaded.model.vision_model if has_projection else loaded.model,
            projection=loaded.model.visual_projection if has_projection else None,
            projection_width=loaded.model.config.projection_dim,
        )

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`; the pooled vector is the normed class token."""
        outputs = self.trunk(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        # transformers normalizes the class token alone; its `last_hidden_state` comes before the final norm.
        return self.trunk.post_layernorm(outputs.last_hidden_state[:, 1:]), outputs.pooler_output


class TransformersClipTextEncoder(TransformersTextEncoder):
    """The text tower of CLIP with its tokenizer.

    In training, token ids are cut behind the last end token of the batch: the mask is causal, so the embedding is the
    same up to rounding.

    Args:
        fields: see `Options`.
    """

    Options = ProjectedTextOptions

    def __init__(self, **fields: Any) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        options = read_options(ProjectedTextOptions, fields, kind=KIND)
        has_projection = options.projection == "own"
        model_class = CLIPTextModelWithProjection if has_projection else CLIPTextModel
        loaded = load_tower(KIND, model_class, CLIPTextConfig, options, types=_TYPES)
        config = loaded.model.config
        super().__init__(
            loaded,
            options,
            kind=KIND,
            trunk=loaded.model.text_model if has_projection else loaded.model,
            projection=loaded.model.text_projection if has_projection else None,
            projection_width=config.projection_dim,
            pooled_width=config.hidden_size,
        )

    def run(self, ids_BL: Tensor) -> Tensor:
        """Return the normed hidden state at the end token, [B, P]."""
        # Evaluation keeps the full length: shorter matrix products would round differently from transformers'.
        if self.training:
            ids_BL = ids_BL[:, : int(self._ends(ids_BL).max()) + 1]
        return self.trunk(input_ids=ids_BL).pooler_output

    def _ends(self, ids_BL: Tensor) -> Tensor:
        """Find the position of each row's end token, as transformers does."""
        end = self.trunk.eos_token_id
        # Old configurations name 2, although the end token has the highest id.
        return ids_BL.argmax(dim=1) if end == 2 else (ids_BL == end).to(torch.int32).argmax(dim=1)


IMAGE_ENCODER = TransformersClipImageEncoder
TEXT_ENCODER = TransformersClipTextEncoder
