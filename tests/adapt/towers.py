"""One tiny network of each family, random and in evaluation mode, and images that it takes."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from foveate.vision.registry import seeded

FAMILIES = ("timm", "open_clip", "clip", "clip_projected", "dinov2", "lite0", "localizer")
CLASSES = 5


def shaken(model: nn.Module) -> Any:
    """Norms and biases off their ones and zeros, so that forgetting one is seen."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tower(family: str) -> Any:
    return deepcopy(_build(family))


@cache
def _build(family: str) -> Any:
    with seeded(7):
        return shaken(_BUILD[family]())


def _timm() -> nn.Module:
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0
    )


def _open_clip() -> nn.Module:
    from foveate.vision.open_clip.build import create_open_clip

    sizes = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"layers": 1, "width": 32, "heads": 1, "context_length": 8}
    return create_open_clip("ViT-B-32", embed_dim=24, vision=sizes, text=text)[0]


def _clip_config(**more: Any) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        **more,
    )


def _clip() -> nn.Module:
    from transformers import CLIPVisionModel

    return CLIPVisionModel(_clip_config())


def _clip_projected() -> nn.Module:
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(_clip_config(projection_dim=24))


def _dinov2() -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=32,
            patch_size=8,
            num_register_tokens=2,
        )
    )


def _lite0() -> nn.Module:
    from foveate.vision.lite0 import Lite0Encoder

    return Lite0Encoder(width=32, embed_dim=24, image_size=32, layers=3, heads=2, precision="float32")


def _localizer() -> nn.Module:
    from foveate.vision.localizer.model import LocalizingModel
    from foveate.vision.localizer.settings import LocalizerSettings

    vision = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"layers": 1, "width": 32, "heads": 1, "context_length": 8}
    return LocalizingModel(
        LocalizerSettings(
            image_encoder={"kind": "open_clip", "model": "ViT-B-32", "vision": vision},
            text_encoder={"kind": "open_clip", "model": "ViT-B-32", "text": text},
            embed_dim=24,
        )
    )


_BUILD = {
    "timm": _timm,
    "open_clip": _open_clip,
    "clip": _clip,
    "clip_projected": _clip_projected,
    "dinov2": _dinov2,
    "lite0": _lite0,
    "localizer": _localizer,
}


def pixels(batch: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
