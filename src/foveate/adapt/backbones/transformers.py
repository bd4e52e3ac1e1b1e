"""Networks of transformers: CLIP's towers, those of the table of `foveate.adapt.families`, others without blocks.

Alone, as a classifier (`...ForImageClassification`), or as the vision tower of a model with two. Some layers have one
DropPath, or a LayerScale that is a parameter, for both sublayers of a block: what a method adds there passes it
together with the sublayer.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block, SublayerEnd
from foveate.adapt.families import FAMILIES, Family
from foveate.adapt.module_map import find_module, map_blocks, map_by_head
from foveate.core.errors import UserError, nearest

_CLIP = ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel")


def map_backbone(model: nn.Module) -> Backbone | None:
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
    blocks, install = [], None
    if family is not None:
        blocks, install = map_blocks(tower, family.modules, prefix=root, one_input=family.one_input)
    if family is None or install is None or not blocks:
        return {"family": "transformers"}
    size, patch = tower.config.image_size, tower.config.patch_size
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    side = patch if isinstance(patch, int) else patch[0]
    positions = family.positions and (root + family.positions[0], *family.positions[1:])
    return {
        "family": "transformers",
        "blocks": tuple(blocks),
        "width": blocks[-1].width,
        # Swin's configuration has a list of heads here, one number for each stage.
        "heads": getattr(tower.config, "num_attention_heads", 0) if family.tokens != "map" else 0,
        "grid": (rows // side, columns // side),
        "patch_size": side,
        "prefix_tokens": _prefix_tokens(tower, family),
        "patch": find_module(tower, family.modules.get("patch", "")),
        "positions": positions,
        "final_norm": find_module(tower, family.modules.get("final_norm", "")),
        "unused": tuple(root + name for name in family.unused),
        "tokens": family.tokens,
        "norms": family.norms,
        "install": install,
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
