"""Networks of timm: its plain ViTs; others by the table `foveate.adapt.families`; without blocks as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, SublayerEnd
from foveate.adapt.families import FAMILIES
from foveate.adapt.module_map import find_module, map_blocks


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map a network of timm."""
    if not type(model).__module__.startswith("timm."):
        return None
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(model, VisionTransformer) and all(map(_is_plain, model.blocks))
    return transformer(model) if plain else _by_table(model)


def _is_plain(block: Any) -> bool:
    from timm.models.vision_transformer import Block as TimmBlock

    return isinstance(block, TimmBlock) and isinstance(getattr(block.attn, "qkv", None), nn.Linear)


def transformer(model: Any) -> Backbone:
    """Map a `VisionTransformer` of plain blocks."""
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
        unused=_second_heads(model),
    )


def _second_heads(model: Any) -> tuple[str, ...]:
    """Return the parameters of the classifiers of a network that has two; none where it has one."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    # With what stands in front of the classifier: LeViT normalizes there.
    heads = () if isinstance(names, str) else tuple(f"{name.partition('.')[0]}." for name in names)
    return tuple(name for name, _ in model.named_parameters() if heads and name.startswith(heads))


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


def _by_table(model: Any) -> Backbone | None:
    """Map another network of timm: its blocks where the table names them, else none."""
    if not hasattr(model, "forward_head") or not hasattr(model, "num_features"):
        return None

    def features(pixels: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(pixels), pre_logits=True).flatten(1)

    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ""
    name = classifier if isinstance(classifier, str) else ""  # distilled networks have two
    head = dict(model.named_modules()).get(name) if name else None
    shared: dict[str, Any] = {
        "model": model,
        "features": features,
        "features_dim": int(getattr(model, "head_hidden_size", None) or model.num_features),
        "forward_original": model,
        "classifier": name if isinstance(head, nn.Linear) else "",
        "unused": _second_heads(model),
    }
    # A subclass has the blocks of its parent, under the same names.
    keys = (f"timm.{parent.__name__}" for parent in type(model).__mro__)
    family = next((FAMILIES[key] for key in keys if key in FAMILIES), None)
    blocks, install = [], None
    if family is not None:
        blocks, install = map_blocks(model, family.modules, one_input=family.one_input, ordered=family.ordered)
    if family is None or install is None or not blocks:
        return Backbone(family="cnn", **shared)
    patches = getattr(model, "patch_embed", None)
    grid, size = getattr(patches, "grid_size", None), getattr(patches, "patch_size", None)
    return Backbone(
        family="timm",
        **shared,
        blocks=tuple(blocks),
        width=blocks[-1].width,
        grid=(0, 0) if grid is None else (int(grid[0]), int(grid[1])),
        patch_size=0 if size is None else size if isinstance(size, int) else int(size[0]),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        patch=find_module(model, family.modules.get("patch", "")),
        final_norm=find_module(model, family.modules.get("final_norm", "")),
        tokens=family.tokens,
        norms=family.norms,
        install=install,
    )
