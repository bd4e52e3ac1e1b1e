"""Classifiers of torchvision: blocks by `foveate.adapt.families`, features what the last linear layer reads."""

from __future__ import annotations

from typing import Any

from torch import nn

from foveate.adapt.backbone import Backbone
from foveate.adapt.families import FAMILIES
from foveate.adapt.module_map import find_module, last_linear, map_blocks, map_by_head


def map_backbone(model: nn.Module) -> Backbone | None:
    """Map a classifier of torchvision."""
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    head = last_linear(model)
    if not head:
        return None
    family = FAMILIES.get(f"torchvision.{type(model).__name__}")
    blocks, install = map_blocks(model, family.modules) if family else ([], None)
    if family is None or install is None or not blocks:
        return map_by_head(model, head, family="torchvision")
    network: Any = model
    side, patch = int(getattr(network, "image_size", 0)), int(getattr(network, "patch_size", 0))
    return map_by_head(
        model,
        head,
        family="torchvision",
        blocks=tuple(blocks),
        width=blocks[-1].width,
        grid=(side // patch,) * 2 if patch else (0, 0),
        patch_size=patch,
        prefix_tokens=int(hasattr(model, "class_token")),
        patch=find_module(model, family.modules.get("patch", "")),
        positions=family.positions,
        final_norm=find_module(model, family.modules.get("final_norm", "")),
        tokens=family.tokens,
        norms=family.norms,
        install=install,
    )
