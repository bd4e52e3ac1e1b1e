"""CLIP's towers from transformers: a folder or hub repository of `CLIPModel`, or of one of its towers alone.

The image embedding is transformers' own `image_embeds`, the text embedding its `text_embeds`. Tokens are the patch
tokens after `post_layernorm`, which transformers applies to the class token only. Source of the model: Learning
Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import choose
from foveate.records.geometry import InputSize
from foveate.vision.backbones import PROJECTIONS
from foveate.vision.hf.loading import load_tower
from foveate.vision.hf.towers import TransformersImageEncoder, TransformersTextEncoder

KIND = "clip"
_TYPES = ("clip", "clip_vision_model", "clip_text_model")


class TransformersClipImageEncoder(TransformersImageEncoder):
    """The image tower of CLIP.

    Args:
        source: folder, or OWNER/NAME on the hub, in the format of transformers with safetensors weights.
        revision: commit, tag or branch of a hub repository; the commit is what a model folder records.
        offline: look into the hub's cache only.
        embed_dim: E; the weights have their own, which must agree.
        projection: "own", or "new" for an untrained one to `embed_dim`.
        image_size: side of the input in pixels; position embeddings are interpolated (bicubic) at each pass.
        geometry: see `Preprocess`; "center_crop" is what most weights were trained on.
        frozen: train the projection only; the tower's results are kept on disk.
        precision: of a frozen tower: "float32", "bfloat16", "auto".
        checkpointing: keep no activations inside layers; slower, less memory.
        config, preprocess: of `architecture()`, to build a saved tower again without its first weights.
    """

    prefix_tokens = 1

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
        from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

        own = choose(projection, PROJECTIONS, f"projection of '{KIND}'") == "own"
        model_class = CLIPVisionModelWithProjection if own else CLIPVisionModel
        found = load_tower(
            KIND, model_class, CLIPVisionConfig, types=_TYPES, source=source, revision=revision, offline=offline,
            config=config,
        )  # fmt: skip
        super().__init__(
            found, kind=KIND, trunk=found.model.vision_model if own else found.model,
            own=found.model.visual_projection if own else None, own_dim=found.model.config.projection_dim,
            embed_dim=embed_dim, image_size=image_size, geometry=geometry, preprocess=preprocess, frozen=frozen,
            precision=precision, checkpointing=checkpointing,
        )  # fmt: skip

    def run(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """See `BackboneImageEncoder.run`; the pooled vector is the normed class token."""
        said = self.trunk(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        return self.trunk.post_layernorm(said.last_hidden_state[:, 1:]), said.pooler_output


class TransformersClipTextEncoder(TransformersTextEncoder):
    """The text tower of CLIP with its tokenizer.

    In training, token ids are cut behind the last end token of the batch: the mask is causal, so the embedding is the
    same up to rounding.

    Args:
        source, revision, offline, embed_dim, projection, frozen, precision, checkpointing, config: see the image tower.
        tokenizer: folder of the tokenizer's files; the source's by default.
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
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        own = choose(projection, PROJECTIONS, f"projection of '{KIND}'") == "own"
        model_class = CLIPTextModelWithProjection if own else CLIPTextModel
        found = load_tower(
            KIND, model_class, CLIPTextConfig, types=_TYPES, source=source, revision=revision, offline=offline,
            config=config,
        )  # fmt: skip
        settings = found.model.config
        super().__init__(
            found, kind=KIND, trunk=found.model.text_model if own else found.model,
            own=found.model.text_projection if own else None, own_dim=settings.projection_dim,
            pooled_width=settings.hidden_size, embed_dim=embed_dim, tokenizer=tokenizer, frozen=frozen,
            precision=precision, checkpointing=checkpointing,
        )  # fmt: skip

    def run(self, ids_BL: Tensor) -> Tensor:
        """Ids to the normed hidden state at the end token."""
        if self.training:
            ids_BL = ids_BL[:, : int(self._ends(ids_BL).max()) + 1]
        return self.trunk(input_ids=ids_BL).pooler_output

    def _ends(self, ids_BL: Tensor) -> Tensor:
        """Position of each row's end token, found as transformers finds it."""
        end = self.trunk.eos_token_id
        # Old configurations name 2, although the end token has the highest id.
        return ids_BL.argmax(dim=1) if end == 2 else (ids_BL == end).to(torch.int32).argmax(dim=1)


IMAGE_ENCODER = TransformersClipImageEncoder
TEXT_ENCODER = TransformersClipTextEncoder
