"""ViTs of timm (`VisionTransformer` with plain blocks); other networks of timm without blocks, such as ResNets."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, SublayerEnd
from foveate.core.errors import UserError


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map a network of timm."""
    if not type(model).__module__.startswith("timm."):
        return None
    from timm.models.vision_transformer import VisionTransformer

    return transformer(model) if isinstance(model, VisionTransformer) else _convolutional(model)


def transformer(model: Any) -> Backbone:
    """Map a `VisionTransformer`.

    Raises:
        UserError: its blocks are of another kind.
    """
    from timm.models.vision_transformer import Block as TimmBlock

    for number, block in enumerate(model.blocks):
        if not isinstance(block, TimmBlock) or not isinstance(getattr(block.attn, "qkv", None), nn.Linear):
            raise UserError(
                f"blocks.{number} of this timm model is a {type(block).__name__} with {type(block.attn).__name__}: "
                "expected plain pre-norm blocks with one qkv projection"
            )
    # Networks that average tokens normalize after the pooling, in `fc_norm`; `norm` is then an identity.
    after_pool = not isinstance(model.fc_norm, nn.Identity)
    patch = model.patch_embed

    def features(pixels: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(pixels), pre_logits=True)

    return Backbone(
        family="timm",
        model=model,
        features=features,
        features_dim=model.num_features,
        forward_original=model,
        blocks=tuple(_block(number, block) for number, block in enumerate(model.blocks)),
        width=model.embed_dim,
        heads=model.blocks[0].attn.num_heads,
        grid=tuple(patch.grid_size),
        patch_size=int(patch.patch_size[0]),
        prefix_tokens=model.num_prefix_tokens,
        patch=patch.proj,
        positions=_positions(model),
        final_norm=_real(model.fc_norm if after_pool else model.norm),
        pre_norm=_real(model.norm_pre),
        classifier="head" if isinstance(model.head, nn.Linear) else "",
    )


def _real(norm: nn.Module) -> nn.Module | None:
    return None if isinstance(norm, nn.Identity) else norm


def _positions(model: Any) -> tuple[str, int, int] | None:
    # A norm between convolution and positions would scale the shift that they take over.
    if model.pos_embed is None or _real(getattr(model.patch_embed, "norm", nn.Identity())) is not None:
        return None
    # The first row of patches: class and register tokens may have positions of their own in front.
    return "pos_embed", 1, model.pos_embed.shape[1] - model.patch_embed.num_patches


def _block(number: int, block: Any) -> Block:
    # The type by name: gated MLPs of timm have an fc1 too, whose output is split in two.
    plain = isinstance(getattr(block.mlp, "fc1", None), nn.Linear) and type(block.mlp).__name__ == "Mlp"
    return Block(
        number=number,
        name=f"blocks.{number}",
        module=block,
        norm1=block.norm1,
        norm2=block.norm2,
        qkv=(block.attn.qkv,),
        proj=block.attn.proj,
        fc1=block.mlp.fc1 if plain else None,
        fc2=block.mlp.fc2 if plain else None,
        attention_end=SublayerEnd(block.drop_path1, (block.ls1, block.drop_path1)),
        mlp_end=SublayerEnd(block.drop_path2, (block.ls2, block.drop_path2)),
        attention=(block.attn,),
        mlp=(block.mlp,),
        mlp_form="two layers" if plain else type(block.mlp).__name__,
    )


def _convolutional(model: Any) -> Backbone | None:
    if not hasattr(model, "forward_head") or not hasattr(model, "num_features"):
        return None

    def features(pixels: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(pixels), pre_logits=True)

    name = str(getattr(model, "pretrained_cfg", {}).get("classifier") or "")
    head = dict(model.named_modules()).get(name) if name else None
    return Backbone(
        family="cnn",
        model=model,
        features=features,
        features_dim=int(getattr(model, "head_hidden_size", None) or model.num_features),
        forward_original=model,
        classifier=name if isinstance(head, nn.Linear) else "",
    )
