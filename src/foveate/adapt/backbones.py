"""Find the map of a network: a row of MAPS gives the `Backbone` of a library's model, or patterns of names do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, SublayerEnd, TransformerBlock
from foveate.adapt.families import CLIP_TOWER, FAMILIES, OPEN_CLIP_TOWER, Family
from foveate.adapt.module_map import find_module, last_linear, map_blocks, map_by_head, map_by_patterns
from foveate.core.errors import UserError, nearest
from foveate.vision.encoder import ImageEncoder
from foveate.vision.layers import TransformerLayer
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.localizer.model import LocalizingModel

# Networks of timm: its plain ViTs; others by the table `foveate.adapt.families`; without blocks as they are.


def _map_timm(model: nn.Module) -> Backbone | None:
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
        blocks=tuple(map_blocks(model, FAMILIES["timm.VisionTransformer"].modules)[0]),
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
    fields = _read_family(next((FAMILIES[key] for key in keys if key in FAMILIES), None), model)
    if not fields:
        return Backbone(family="cnn", **shared)
    patches = getattr(model, "patch_embed", None)
    grid, size = getattr(patches, "grid_size", None), getattr(patches, "patch_size", None)
    return Backbone(
        family="timm",
        **{**fields, **shared},
        grid=(0, 0) if grid is None else (int(grid[0]), int(grid[1])),
        patch_size=0 if size is None else size if isinstance(size, int) else int(size[0]),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
    )


def _read_family(family: Family | None, tower: nn.Module, *, root: str = "") -> dict[str, Any]:
    """Return the fields of a map that a row of the table gives; none without a row, or where no block fits it."""
    if family is None:
        return {}
    blocks, install = map_blocks(tower, family.modules, prefix=root, one_input=family.one_input, ordered=family.ordered)
    if not blocks:
        return {}
    return {
        "blocks": tuple(blocks),
        "width": blocks[-1].width,
        "patch": find_module(tower, family.modules.get("patch", "")),
        "positions": family.positions and (root + family.positions[0], *family.positions[1:]),
        "final_norm": find_module(tower, family.modules.get("final_norm", "")),
        "unused": tuple(root + name for name in family.unused),
        "tokens": family.tokens,
        "norms": family.norms,
        "install": install,
    }


# Vision towers of open_clip: its own ViT, or a ViT of timm; alone or within a CLIP model.
#
# `nn.MultiheadAttention` computes with its tensors directly, so while an adapter is attached its forward pass is one
# that calls the projections as modules. The tensors stay where they are, under their names.


def _map_open_clip(model: nn.Module) -> Backbone | None:
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
        inner = _map_timm(trunk)
        if inner is not None:
            linear = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
            positions = inner.positions and (f"{root}trunk.{inner.positions[0]}", *inner.positions[1:])
            return dataclasses.replace(
                inner,
                family="open_clip",
                model=model,
                root=root,
                # The whole tower, not the trunk: open_clip's projection behind it belongs to the features.
                features=visual,
                forward_original=visual,
                # The last linear layer of timm's head is the projection to the joint embedding.
                features_dim=linear[-1].out_features if linear else inner.features_dim,
                blocks=tuple(dataclasses.replace(b, name=f"{root}trunk.{b.name}") for b in inner.blocks),
                positions=positions,
                classifier="",
            )

    def features(pixels: Tensor) -> Tensor:
        outputs = visual(pixels)
        # Towers built with output_tokens return pooled features and tokens.
        return outputs[0] if isinstance(outputs, tuple) else outputs

    shared: dict[str, Any] = {
        "family": "open_clip",
        "model": model,
        "root": root,
        "features": features,
        "forward_original": features,
    }
    layers: list[Any] = list(visual.transformer.resblocks) if isinstance(visual, VisionTransformer) else []
    # Exactly this class: a subclass may add scales or norms that the map does not know. CLIP's ResNets have no blocks.
    if not layers or not all(type(layer) is ResidualAttentionBlock for layer in layers):
        width = getattr(visual, "output_dim", None)
        if width is None:
            raise UserError(
                f"open_clip tower of type {type(visual).__name__}: expected one with output_dim, such as ResNets and "
                "ViTs"
            )
        return Backbone(**shared, features_dim=int(width))
    blocks, install = map_blocks(visual, OPEN_CLIP_TOWER, prefix=root)
    return Backbone(
        **shared,
        features_dim=visual.output_dim if visual.proj is not None else visual.conv1.out_channels,
        blocks=tuple(blocks),
        width=visual.conv1.out_channels,
        heads=layers[0].attn.num_heads,
        grid=tuple(visual.grid_size),
        patch_size=int(visual.conv1.kernel_size[0]),
        prefix_tokens=1,
        patch=visual.conv1,
        # [positions, width], with the row of the class token first.
        positions=(f"{root}positional_embedding", 0, 1),
        final_norm=visual.ln_post,
        pre_norm=_real(visual.ln_pre),
        install=install,
    )


# Classifiers of torchvision: blocks by `foveate.adapt.families`, features what the last linear layer reads.


def _map_torchvision(model: nn.Module) -> Backbone | None:
    """Map a classifier of torchvision."""
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    head = last_linear(model)
    if not head:
        return None
    fields = _read_family(FAMILIES.get(f"torchvision.{type(model).__name__}"), model)
    if not fields:
        return map_by_head(model, head, family="torchvision")
    network: Any = model
    side, patch = int(getattr(network, "image_size", 0)), int(getattr(network, "patch_size", 0))
    return map_by_head(
        model,
        head,
        family="torchvision",
        **fields,
        grid=(side // patch,) * 2 if patch else (0, 0),
        patch_size=patch,
        prefix_tokens=int(hasattr(model, "class_token")),
    )


# Networks of transformers: CLIP's towers, those of the table of `foveate.adapt.families`, others without blocks.
#
# Alone, as a classifier (`...ForImageClassification`), or as the vision tower of a model with two. Some layers have one
# DropPath, or a LayerScale that is a parameter, for both sublayers of a block: what a method adds there passes it
# together with the sublayer.


_CLIP = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")


def _map_transformers(model: nn.Module) -> Backbone | None:
    """Map a network of transformers.

    Raises:
        UserError: a model that takes no images.
    """
    if not type(model).__module__.startswith("transformers."):
        return None
    kind = type(model).__name__
    if kind in _CLIP:
        return _clip(model, kind)
    tower, root = _find_tower(model)
    blocks = _block_fields(tower, root)
    classifier = getattr(model, "classifier", None)
    if isinstance(classifier, nn.Linear):
        return map_by_head(model, "classifier", **blocks, root=root)
    return _pooled(model, tower, root, blocks)


def _find_tower(model: Any) -> tuple[Any, str]:
    """Return the part of a model that takes images, and its prefix.

    Raises:
        UserError: no part takes images alone.
    """
    # The model itself first: the `base_model` of some is an encoder within them.
    has_row = f"transformers.{type(model).__name__}" in FAMILIES
    candidates = [model] if has_row else [getattr(model, "base_model", model), getattr(model, "vision_model", None)]
    for tower in candidates:
        takes_images = getattr(tower, "main_input_name", "") == "pixel_values"
        if takes_images and (tower is getattr(model, "vision_model", None) or not hasattr(tower, "vision_model")):
            name = next(name for name, module in model.named_modules() if module is tower)
            return tower, f"{name}." if name else ""
    known = [key.removeprefix("transformers.") for key in FAMILIES if key.startswith("transformers.")]
    kind = type(model).__name__
    raise UserError(
        f"{kind} of transformers takes no images alone; expected a vision model such as {', '.join((*_CLIP, *known))}"
        f"{nearest(kind, [*_CLIP, *known])}"
    )


def _block_fields(tower: Any, root: str) -> dict[str, Any]:
    """Return the fields of a map that the table gives for a tower; of one without blocks where it has no row."""
    family = FAMILIES.get(f"transformers.{type(tower).__name__}")
    fields = _read_family(family, tower, root=root)
    if family is None or not fields:
        return {"family": "transformers"}
    size, patch = tower.config.image_size, tower.config.patch_size
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    side = patch if isinstance(patch, int) else patch[0]
    return {
        "family": "transformers",
        **fields,
        # Swin's configuration has a list of heads here, one number for each stage.
        "heads": getattr(tower.config, "num_attention_heads", 0) if family.tokens != "map" else 0,
        "grid": (rows // side, columns // side),
        "patch_size": side,
        "prefix_tokens": _prefix_tokens(tower, family),
    }


def _prefix_tokens(tower: Any, family: Family) -> int:
    """Return the number of class, distillation and register tokens in front of the patches."""
    if family.tokens == "map":
        return 0
    names = ("cls_token", "class_token", "distillation_token")
    single = sum(getattr(tower.embeddings, name, None) is not None for name in names)
    return single + int(getattr(tower.config, "num_register_tokens", 0))


def _pooled(model: Any, tower: Any, root: str, fields: dict[str, Any]) -> Backbone:
    """Map a tower without a classifier: its features are the pooled output, or the class token."""
    family = FAMILIES.get(f"transformers.{type(tower).__name__}")
    pooled = family.pooled if family is not None else "pooler"

    def features(pixels: Tensor) -> Tensor:
        outputs = tower(pixel_values=pixels)
        vector = outputs.get("pooler_output") if pooled == "pooler" else None
        return outputs.last_hidden_state[:, 0] if vector is None else vector.flatten(1)

    config = tower.config
    # Convolutional networks have a width for each stage; the pooled features have the last one.
    sizes = getattr(config, "hidden_sizes", None)
    return Backbone(
        model=model,
        root=root,
        features=features,
        features_dim=int(sizes[-1] if sizes else config.hidden_size),
        forward_original=features,
        **fields,
    )


def _clip(model: Any, kind: str) -> Backbone:
    tower, root = (model, "") if kind == "CLIPVisionModel" else (model.vision_model, "vision_model.")
    config = tower.config
    projection = None if kind == "CLIPVisionModel" else model.visual_projection

    def features(pixels: Tensor) -> Tensor:
        # Positions are interpolated where the images have another size than in pre-training. [B, D]
        pooled = tower(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
        return pooled if projection is None else projection(pooled)

    return Backbone(
        family="transformers",
        model=model,
        root=root,
        features=features,
        features_dim=config.hidden_size if projection is None else projection.out_features,
        forward_original=features,
        blocks=tuple(map_blocks(tower, CLIP_TOWER, prefix=root)[0]),
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


# Foveate's own image encoders, alone or within a localizing model: lite0, and those over other libraries' towers.


def _map_foveate(model: nn.Module) -> Backbone | None:
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
        return tower(encoder.visual, model=encoder.visual, root=""), "visual."
    trunk = getattr(encoder, "trunk", None)
    backbone = None
    if trunk is not None:
        backbone = _map_timm(trunk) or _map_transformers(trunk)
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


def _layer(number: int, layer: TransformerLayer, name: str) -> TransformerBlock:
    return TransformerBlock(
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


MAPS: tuple[Callable[[nn.Module], Backbone | None], ...] = (
    _map_foveate,
    _map_open_clip,
    _map_timm,
    _map_torchvision,
    _map_transformers,
)


def map_backbone(model: nn.Module, modules: Mapping[str, str] | None = None) -> Backbone:
    """Return the map of a model, from the first row of `MAPS` that knows it.

    Args:
        modules: patterns of names by role, instead of a map that is known; see `foveate.adapt.module_map`.

    Raises:
        UserError: no row knows the model, or the patterns do not fit it.
    """
    candidates = (map_model(model) for map_model in MAPS)
    backbone = next((backbone for backbone in candidates if backbone is not None), None)
    if modules:
        return map_by_patterns(model, modules, backbone)
    if backbone is not None:
        return backbone
    name = type(model).__name__
    hint = nearest(name, {key.rpartition(".")[2] for key in FAMILIES})
    raise UserError(
        f"{type(model).__module__}.{name} cannot be adapted without the names of its modules; give them with modules, "
        "such as modules={'qkv': 'blocks.*.attn.qkv', 'head': 'head'}, or give a network of timm, torchvision, "
        f"transformers, open_clip or Foveate{hint}"
    )
