"""CLIP towers that came from transformers, back as one `CLIPModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveate.core.errors import UserError
from foveate.vision.hf.clip import TransformersClipImageEncoder, TransformersClipTextEncoder


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
