"""Finds the map of a model."""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

import foveate.adapt.backbones
from foveate.adapt.backbone import Backbone
from foveate.core.errors import UserError


def view_of(model: nn.Module) -> Backbone:
    """The places of a model that methods know.

    Raises:
        UserError: for a model that no map knows.
    """
    for module in sorted(module.name for module in pkgutil.iter_modules(foveate.adapt.backbones.__path__)):
        view = getattr(importlib.import_module(f"foveate.adapt.backbones.{module}"), "view", None)
        found = view(model) if view is not None else None
        if found is not None:
            return found
    raise UserError(
        f"no map knows a {type(model).__module__}.{type(model).__name__}: allowed are VisionTransformer and "
        "convolutional networks of timm, open_clip's vision towers and CLIP models, CLIPVisionModel, CLIPModel and "
        "Dinov2Model of transformers, and Foveate's image encoders and models"
    )
