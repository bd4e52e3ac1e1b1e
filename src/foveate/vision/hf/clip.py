"""CLIP's towers from transformers: a folder or hub repository of `CLIPModel`, or of one of its towers alone.

The image embedding is transformers' own `image_embeds`, the text embedding its `text_embeds`. Tokens are the patch
tokens after `post_layernorm`, which transformers applies to the class token only. Source of the model: Learning
Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.hf.towers import TransformersImageEncoder, TransformersTextEncoder, load_tower
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
        # Padding may repeat the end token: `argmax` returns the first of equal values.
        return ids_BL.argmax(dim=1) if end == 2 else (ids_BL == end).to(torch.int32).argmax(dim=1)


IMAGE_ENCODER = TransformersClipImageEncoder
TEXT_ENCODER = TransformersClipTextEncoder


# CLIP towers that came from transformers, back as one `CLIPModel`.


def check_whole(image: TransformersClipImageEncoder, text: TransformersClipTextEncoder) -> None:
    """Raise UserError, naming the field, for towers that do not make one `CLIPModel`."""
    trained_size = image.trunk.config.image_size
    if image.preprocess.side != trained_size:
        raise UserError(
            f"image_size {image.preprocess.side}: the weights' positions are for {trained_size} px, and CLIPModel "
            "interpolates them only where each call asks for it; `--to onnx` takes this model as it is"
        )
    for name, encoder in (("image", image), ("text", text)):
        if not isinstance(encoder.proj, nn.Linear) or encoder.proj.bias is not None:
            raise UserError(f"{name} tower: its projection is not a linear map without bias, as in CLIPModel")


def whole_model(image: TransformersClipImageEncoder, text: TransformersClipTextEncoder, *, log_scale: float) -> Any:
    """Build a `transformers.CLIPModel` in float32 on the CPU with the weights of both towers.

    Args:
        log_scale: logarithm of 1 / temperature.

    Raises:
        UserError: see `check_whole`.
    """
    from transformers import CLIPConfig, CLIPModel

    check_whole(image, text)
    towers = {"vision_config": image.trunk.config.to_dict(), "text_config": text.trunk.config.to_dict()}
    # Both towers name the joint width themselves, and a tower alone may have been saved with another one.
    for config in towers.values():
        config["projection_dim"] = image.embed_dim
    model = CLIPModel(CLIPConfig(**towers, projection_dim=image.embed_dim, logit_scale_init_value=log_scale))
    state = {f"vision_model.{name}": value for name, value in image.trunk.state_dict().items()}
    state |= {f"text_model.{name}": value for name, value in text.trunk.state_dict().items()}
    state["visual_projection.weight"] = image.proj.state_dict()["weight"]
    state["text_projection.weight"] = text.proj.state_dict()["weight"]
    state["logit_scale"] = torch.tensor(float(log_scale))
    model.load_state_dict({name: value.detach().cpu().float() for name, value in state.items()}, strict=True)
    return model.eval()
