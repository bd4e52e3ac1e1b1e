"""Vision towers of transformers: CLIP (alone, with its projection, or within `CLIPModel`) and DINOv2.

DINOv2 has one DropPath module for both sublayers of a block, so what a method adds there passes it together with the
sublayer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, SublayerEnd
from foveate.core.errors import UserError

_CLIP = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")
_DINO = ("Dinov2Model", "Dinov2WithRegistersModel")


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map a tower of transformers.

    Raises:
        UserError: another model of transformers.
    """
    if not type(model).__module__.startswith("transformers."):
        return None
    kind = type(model).__name__
    if kind in _CLIP:
        return _clip(model, kind)
    if kind in _DINO:
        return _dinov2(model)
    raise UserError(f"{kind} of transformers cannot be adapted; expected one of {', '.join((*_CLIP, *_DINO))}")


def _clip(model: Any, kind: str) -> Backbone:
    tower, root = (model, "") if kind == "CLIPVisionModel" else (model.vision_model, "vision_model.")
    config = tower.config
    projection = None if kind == "CLIPVisionModel" else model.visual_projection

    def features(pixels: Tensor) -> Tensor:
        pooled = tower(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        return pooled if projection is None else projection(pooled)

    return Backbone(
        family="transformers",
        model=model,
        root=root,
        features=features,
        features_dim=config.hidden_size if projection is None else projection.out_features,
        forward_original=features,
        blocks=tuple(_clip_block(n, layer, root) for n, layer in enumerate(tower.encoder.layers)),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        grid=(config.image_size // config.patch_size,) * 2,
        patch_size=config.patch_size,
        prefix_tokens=1,
        patch=tower.embeddings.patch_embedding,
        positions=(f"{root}embeddings.position_embedding.weight", 0, 1),
        final_norm=tower.post_layernorm,
        # `pre_layrnorm`: transformers' own spelling.
        pre_norm=tower.pre_layrnorm,
    )


def _clip_block(number: int, layer: Any, root: str) -> Block:
    attention = layer.self_attn
    return Block(
        number=number,
        name=f"{root}encoder.layers.{number}",
        module=layer,
        norm1=layer.layer_norm1,
        norm2=layer.layer_norm2,
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        proj=attention.out_proj,
        fc1=layer.mlp.fc1,
        fc2=layer.mlp.fc2,
        # CLIP has no module between sublayer and addition, so the sublayer itself is its end.
        attention_end=SublayerEnd(attention),
        mlp_end=SublayerEnd(layer.mlp),
        attention=(attention,),
        mlp=(layer.mlp,),
    )


def _dinov2(model: Any) -> Backbone:
    config = model.config
    layers = getattr(model.encoder, "layers", None) or model.encoder.layer

    def features(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).last_hidden_state[:, 0]

    return Backbone(
        family="transformers",
        model=model,
        features=features,
        features_dim=config.hidden_size,
        forward_original=features,
        blocks=tuple(_dinov2_block(n, layer, _name(model, layer)) for n, layer in enumerate(layers)),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        grid=(config.image_size // config.patch_size,) * 2,
        patch_size=config.patch_size,
        prefix_tokens=1 + int(getattr(config, "num_register_tokens", 0)),
        patch=model.embeddings.patch_embeddings.projection,
        positions=("embeddings.position_embeddings", 1, 1),
        final_norm=model.layernorm,
        unused=("embeddings.mask_token",),
    )


def _name(model: nn.Module, layer: nn.Module) -> str:
    # By search: releases of transformers differ in the path of the layers.
    return next(name for name, module in model.named_modules() if module is layer)


def _dinov2_block(number: int, layer: Any, name: str) -> Block:
    attention = layer.attention
    if hasattr(attention, "q_proj"):
        qkv, proj = (attention.q_proj, attention.k_proj, attention.v_proj), attention.o_proj
    else:  # releases of transformers up to 5.20 or so nest the projections
        inner = attention.attention
        qkv, proj = (inner.query, inner.key, inner.value), attention.output.dense
    plain = isinstance(getattr(layer.mlp, "fc1", None), nn.Linear)
    return Block(
        number=number,
        name=name,
        module=layer,
        norm1=layer.norm1,
        norm2=layer.norm2,
        qkv=qkv,
        proj=proj,
        fc1=layer.mlp.fc1 if plain else None,
        fc2=layer.mlp.fc2 if plain else None,
        attention_end=SublayerEnd(layer.layer_scale1, (layer.layer_scale1,)),
        mlp_end=SublayerEnd(layer.layer_scale2, (layer.layer_scale2,)),
        attention=(attention,),
        mlp=(layer.mlp,),
        mlp_form="two layers" if plain else "a gated unit (SwiGLU)",
    )
