"""Vision towers of open_clip: its own ViT, or a ViT of timm; alone or within a CLIP model.

`nn.MultiheadAttention` computes with its tensors directly, so while an adapter is attached its forward pass is one
that calls the projections as modules. The tensors stay where they are, under their names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, InProjection, SublayerEnd, split_attention
from foveate.adapt.backbones import timm as timm_map
from foveate.core.errors import UserError


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map a tower, or a model with a part `visual`."""
    if not type(model).__module__.startswith("open_clip."):
        return None
    visual = getattr(model, "visual", model)
    return tower(visual, model=model, root="" if visual is model else "visual.")


def tower(visual: Any, *, model: nn.Module, root: str) -> Backbone:
    """Map a vision tower within `model` under the prefix `root`.

    Raises:
        UserError: a tower without blocks that does not say how wide its embedding is.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        inner = timm_map.map_backbone(trunk)
        if inner is not None:
            positions = inner.positions and (f"{root}trunk.{inner.positions[0]}", *inner.positions[1:])
            return dataclasses.replace(
                inner,
                family="open_clip",
                model=model,
                root=root,
                # The whole tower, not the trunk: open_clip's projection behind it belongs to the features.
                features=visual,
                forward_original=visual,
                features_dim=_width_of(visual, inner.features_dim),
                blocks=tuple(dataclasses.replace(b, name=f"{root}trunk.{b.name}") for b in inner.blocks),
                positions=positions,
                classifier="",
            )
    blocks: list[Any] = list(visual.transformer.resblocks) if isinstance(visual, VisionTransformer) else []
    # Exactly this class: a subclass may add scales or norms that the map does not know.
    if not blocks or not all(type(block) is ResidualAttentionBlock for block in blocks):
        return _without_blocks(visual, model=model, root=root)
    pairs = [(block.attn, InProjection(block.attn)) for block in blocks]

    def features(pixels: Tensor) -> Tensor:
        outputs = visual(pixels)
        # Towers built with output_tokens return pooled features and tokens.
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def install() -> contextlib.AbstractContextManager[None]:
        return split_attention(pairs)

    return Backbone(
        family="open_clip",
        model=model,
        root=root,
        features=features,
        features_dim=visual.output_dim if visual.proj is not None else visual.conv1.out_channels,
        forward_original=features,
        blocks=tuple(_block(n, block, pairs[n][1], root) for n, block in enumerate(blocks)),
        width=visual.conv1.out_channels,
        heads=blocks[0].attn.num_heads,
        grid=tuple(visual.grid_size),
        patch_size=int(visual.conv1.kernel_size[0]),
        prefix_tokens=1,
        patch=visual.conv1,
        # [positions, width], with the row of the class token first.
        positions=(f"{root}positional_embedding", 0, 1),
        final_norm=visual.ln_post,
        pre_norm=None if isinstance(visual.ln_pre, nn.Identity) else visual.ln_pre,
        install=install,
    )


def _without_blocks(visual: Any, *, model: nn.Module, root: str) -> Backbone:
    """Map a tower without known blocks, such as CLIP's ResNets.

    Raises:
        UserError: the tower does not say how wide its embedding is.
    """
    width = getattr(visual, "output_dim", None)
    if width is None:
        raise UserError(
            f"open_clip tower of type {type(visual).__name__}: expected one with output_dim, such as ResNets and ViTs"
        )

    def features(pixels: Tensor) -> Tensor:
        outputs = visual(pixels)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    return Backbone(
        family="open_clip",
        model=model,
        root=root,
        features=features,
        features_dim=int(width),
        forward_original=features,
    )


def _width_of(visual: Any, inner: int) -> int:
    # The last linear layer of timm's head is the projection to the joint embedding.
    linear = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else inner


def _block(number: int, block: Any, projection: InProjection, root: str) -> Block:
    return Block(
        number=number,
        name=f"{root}transformer.resblocks.{number}",
        module=block,
        norm1=block.ln_1,
        norm2=block.ln_2,
        qkv=(projection,),
        proj=block.attn.out_proj,
        fc1=block.mlp.c_fc,
        fc2=block.mlp.c_proj,
        # LayerScale is the last module of the sublayer; it is an identity where the tower has none.
        attention_end=SublayerEnd(block.ls_1, (block.ls_1,)),
        mlp_end=SublayerEnd(block.ls_2, (block.ls_2,)),
        attention=(block.attn,),
        mlp=(block.mlp,),
    )
