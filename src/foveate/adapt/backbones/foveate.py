"""Foveate's own image encoders, alone or within a localizing model: lite0, and those over other libraries' towers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, SublayerEnd
from foveate.adapt.backbones import open_clip as open_clip_map
from foveate.adapt.backbones import timm as timm_map
from foveate.adapt.backbones import transformers as transformers_map
from foveate.core.errors import UserError
from foveate.vision.encoder import ImageEncoder
from foveate.vision.layers import TransformerLayer
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.localizer.model import LocalizingModel


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map an image encoder, or that of a localizing model."""
    if isinstance(model, LocalizingModel):
        return _encoder(model.image_encoder, model=model, root="image_encoder.")
    return _encoder(model, model=model, root="") if isinstance(model, ImageEncoder) else None


def _encoder(encoder: ImageEncoder, *, model: nn.Module, root: str) -> Backbone:
    def stem(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):  # the frozen part has a precision of its own
            return encoder.frozen_features(pixels)

    def features(inputs: Tensor) -> Tensor:
        # Four dimensions are pixels; what the stem computed of them has other ones.
        return encoder(stem(inputs) if inputs.dim() == 4 else inputs).pooled

    shared: dict[str, Any] = {
        "family": "foveate",
        "model": model,
        "root": root,
        "features": features,
        "features_dim": encoder.embed_dim,
        "forward_original": features,
        # A fingerprint exists exactly where a part is never trained; without one there is nothing to cache.
        "stem": stem if encoder.fingerprint() else None,
    }
    if isinstance(encoder, Lite0Encoder):
        return _lite0(encoder, root, shared)
    inner = _inner(encoder)
    if inner is None:
        raise UserError(f"image encoder {type(encoder).__name__}: its network cannot be adapted")
    network, prefix = inner
    if getattr(encoder, "frozen", False):
        raise UserError(
            "image encoder: field 'frozen' must be false to adapt it (got true); a frozen network has no gradients"
        )
    below = f"{root}{prefix}"
    return dataclasses.replace(
        network,
        **shared,
        blocks=tuple(dataclasses.replace(block, name=below + block.name) for block in network.blocks),
        # Names inside the tower become names in the whole model.
        positions=network.positions and (below + network.positions[0], *network.positions[1:]),
        classifier="",
        unused=tuple(below + name for name in network.unused),
    )


def _inner(encoder: Any) -> tuple[Backbone, str] | None:
    if hasattr(encoder, "visual"):
        return open_clip_map.tower(encoder.visual, model=encoder.visual, root=""), "visual."
    trunk = getattr(encoder, "trunk", None)
    backbone = None
    if trunk is not None:
        backbone = timm_map.map_backbone(trunk) or transformers_map.map_backbone(trunk)
    return None if backbone is None else (backbone, "trunk.")


def _lite0(encoder: Lite0Encoder, root: str, shared: dict[str, Any]) -> Backbone:
    layers: list[TransformerLayer] = list(encoder.layers)  # pyrefly: ignore[bad-assignment]
    rows, _ = encoder.grid
    return Backbone(
        **shared,
        blocks=tuple(_layer(n, layer, f"{root}layers.{n}") for n, layer in enumerate(layers)),
        width=encoder.width,
        heads=layers[0].heads if layers else 0,
        grid=encoder.grid,
        patch_size=encoder.preprocess.height // rows,
        final_norm=encoder.final_ln,
    )


def _layer(number: int, layer: TransformerLayer, name: str) -> Block:
    return Block(
        number=number,
        name=name,
        module=layer,
        norm1=layer.ln1,
        norm2=layer.ln2,
        qkv=(layer.qkv,),
        proj=layer.out,
        fc1=layer.fc1,
        fc2=layer.fc2,
        attention_end=SublayerEnd(layer.out),
        mlp_end=SublayerEnd(layer.fc2),
        attention=(layer.qkv, layer.out),
        mlp=(layer.fc1, layer.fc2),
    )
