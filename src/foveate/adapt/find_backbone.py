"""Find the map of a network: by the functions that know its library, or by patterns of names from the user."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from foveate.adapt.backbone import Backbone
from foveate.adapt.backbones import MAPS
from foveate.adapt.families import FAMILIES
from foveate.adapt.module_map import map_by_patterns
from foveate.core.errors import UserError, nearest


def map_backbone(model: nn.Module, modules: Mapping[str, str] | None = None) -> Backbone:
    """Return the map of a model, from the first row of `foveate.adapt.backbones.MAPS` that knows it.

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
