"""Writes the model at an alpha as an adapter folder, which every other verb opens as it opens any adapter.

- A branch keeps its method: what its last linear map gives is scaled, through its scale, or LoRA's B.
- Tuned tensors of the network keep their method with interpolated values.
- difffit and ssf, whose merged weights are interpolated, become the tuned tensors that these are (method `subset`).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from foveate.adapt.adapter import MethodSettings, NativeAdapter
from foveate.adapt.folder import save_adapter, tensors_of
from foveate.adapt.methods.lora import LoraAdapter
from foveate.adapt.methods.subset import SubsetSettings
from foveate.adapt.model import AdaptedModel
from foveate.adapt.wise import between, check, head_at
from foveate.core.errors import UserError


def save_at(adapted: AdaptedModel, alpha: float, folder: Path, *, keep_head: bool = False) -> Path:
    """Writes the model at `alpha` of the adapter in use; see `foveate.adapt.wise.interpolated` for what that is.

    Args:
        keep_head: the tuned head, not the interpolated one.

    Raises:
        UserError: for a method without a rule, a head that started afresh, or a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder}: exists and is not empty; give another folder")
    adapter = check(adapted, alpha)
    tensors = {key: value.detach().clone() for key, value in tensors_of(adapted, adapted.active).items()}
    head = head_at(adapted, alpha, keep=keep_head)
    tensors |= {f"head.{key}": value.detach().clone() for key, value in head.named_parameters()}
    settings: MethodSettings = adapter.settings
    if adapter.wise == "branch" and not isinstance(adapter, NativeAdapter):
        settings = _scaled(adapter, alpha * adapter.strength, tensors)
    else:
        tuned = adapted.merged_weights()
        with adapted._plain(), torch.no_grad():
            values = between(adapted.model, tuned, alpha)
            if adapter.wise == "weights":
                start = dict(adapted.model.named_parameters(remove_duplicate=False))
                for key in [key for key in tensors if key.startswith("adapter.backbone.")]:
                    name = key.removeprefix("adapter.backbone.")
                    tensors[key] = values.get(name, start[name]).detach().clone()
            else:
                tensors = {key: value for key, value in tensors.items() if not key.startswith("adapter.")}
                tensors |= {f"adapter.backbone.{name}": value for name, value in values.items()}
                if not values:
                    raise UserError(f"method '{adapter.settings.method}' at alpha {alpha:g}: nothing is left to write")
                settings = SubsetSettings(pattern="|".join(re.escape(name) for name in sorted(values)))
    return save_adapter(adapted, folder, settings=settings, tensors=tensors, strength=1.0)


def _scaled(adapter: object, alpha: float, tensors: dict[str, Tensor]) -> MethodSettings:
    """Settings and tensors of a branch that is multiplied by alpha, at strength 1."""
    settings: MethodSettings = adapter.settings  # pyrefly: ignore[missing-attribute]
    if isinstance(adapter, LoraAdapter):
        for key in [key for key in tensors if key.startswith("adapter.") and key.endswith(".b.weight")]:
            tensors[key] = alpha * tensors[key]
        return settings
    scale = getattr(settings, "scale", None)
    if scale is None:  # linear: there is the head alone
        return settings
    if scale == "learnable":
        for key in [key for key in tensors if key.endswith(".learnt_scale")]:
            tensors[key] = alpha * tensors[key]
        return settings
    return settings.model_copy(update={"scale": alpha * float(scale)})
