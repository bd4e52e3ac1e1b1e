"""WiSE: models between a network and its tuned one, theta(a) = (1 - a) theta_0 + a theta_tuned.

Wortsman et al. 2022, arXiv 2109.01903, section 3; for adapters as in arXiv 2409.16434. What the rule means depends on
the method:

- tuned tensors of the network itself (full, bitfit, layernorm, subset) are interpolated;
- an added branch (lora, adaptformer, pfeiffer, houlsby, convpass, repadapter, FacT) is multiplied by a. For branches
  that merge this is the interpolation of merged weights; scaling both factors of a low-rank product would give a^2;
- difffit and ssf are merged first, then merged weights are interpolated;
- prompts have no counterpart in the original network: not defined.

The head is interpolated with the one that it started from. a = 0 and a = 1 are these two models bit for bit. With
`layerscale: official` a sublayer passes LayerScale twice even where the branch is 0, as in the study's code, so there
a = 0 is not the original network.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, MethodSettings, NativeAdapter
from foveate.adapt.folder import adapter_tensors, save_adapter
from foveate.adapt.methods.lora import LoraAdapter
from foveate.adapt.methods.subset import SubsetSettings
from foveate.adapt.model import AdaptedModel
from foveate.adapt.parameter_swap import ParameterSwap, upcast
from foveate.core.errors import UserError


@contextlib.contextmanager
def interpolated(
    adapted: AdaptedModel, alpha: float, *, head: Literal["interpolate", "keep"] = "interpolate"
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from pixels to logits of the model at `alpha`; the model itself stays as it is.

    Args:
        alpha: 0 (the original network) to 1 (the tuned one).
        head: keep = the tuned head at every alpha, for one that started from random values.

    Raises:
        UserError: a method without a rule, an alpha out of range, a merged model, or a head that started from random
            values.
    """
    adapter = check_alpha(adapted, alpha)
    classify = head_at(adapted, alpha, keep=head == "keep")
    with_gradients = torch.is_grad_enabled()
    # Not a mixture with weight 1: that would round, and alpha 1 must be the tuned model bit for bit.
    if alpha == 1:
        yield lambda pixels: classify(adapted.backbone.features(pixels))
    # With official LayerScale a branch of strength 0 still differs from the original network, so it takes the way
    # below.
    elif alpha == 0 and getattr(adapter.settings, "layerscale", "once") == "once":
        with adapted._original():
            yield lambda pixels: classify(adapted.backbone.features(pixels))
    elif adapter.interpolation == "branch" and not isinstance(adapter, NativeAdapter):
        # Times the adapter's own strength: a saved model may be scaled already.
        before, adapter.strength = adapter.strength, adapter.strength * alpha
        try:
            yield lambda pixels: classify(adapted.backbone.features(pixels))
        finally:
            adapter.strength = before
    else:
        tuned = adapted.merged_weights()
        with adapted._original(), torch.no_grad():
            store = ParameterSwap(interpolate_weights(adapted.model, tuned, alpha), trained=False)
            store.swap(adapted.model)
            try:
                # Only the weights are made without gradient; a caller may want the one of the pixels.
                with torch.set_grad_enabled(with_gradients):
                    yield lambda pixels: classify(adapted.backbone.features(pixels))
            finally:
                store.swap(adapted.model)


def check_alpha(adapted: AdaptedModel, alpha: float) -> Adapter[Any]:
    """Return the adapter in use.

    Raises:
        UserError: it has no model at `alpha`.
    """
    adapter = adapted.adapter()
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1] (got {alpha})")
    if not adapter.interpolation:
        raise UserError(f"method '{adapter.settings.method}' has no models in between: {adapter.why_not_mergeable}")
    if adapted.is_merged:
        raise UserError("the model is merged: unmerge it first")
    return adapter


def interpolate_weights(model: nn.Module, tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - a) of the model's tensors and a of the tuned ones, where they differ."""
    return {
        name: ((1 - alpha) * upcast(value) + alpha * upcast(tuned[name])).to(value.dtype)
        for name, value in model.named_parameters(remove_duplicate=False)
        # (1 - a) x + a x is not x in floating point, so equal tensors are left out.
        if not torch.equal(value, tuned[name])
    }


def head_at(adapted: AdaptedModel, alpha: float, *, keep: bool) -> nn.Module:
    """Return the head between the one that it started from and the tuned one; `keep` = the tuned one.

    Raises:
        UserError: it started from random values.
    """
    if keep or alpha == 1:
        return adapted.head
    if adapted.active not in adapted.first_heads:
        raise UserError(
            "the head started from random values, so there is no model at alpha 0: adapt with head=..., from zero-shot "
            'weights or a linear probe, or keep the tuned head with head="keep"'
        )
    first = adapted.first_heads[adapted.active]
    if alpha == 0:
        return first
    # A copy: the first head and the tuned one stay as they are.
    mixed = copy.deepcopy(first)
    tuned = dict(adapted.head.named_parameters())
    with torch.no_grad():
        for name, value in mixed.named_parameters():
            value.copy_((1 - alpha) * upcast(value) + alpha * upcast(tuned[name]))
    return mixed


def save_at(adapted: AdaptedModel, alpha: float, folder: Path, *, keep_head: bool = False) -> Path:
    """Write the model at `alpha` as an adapter folder, which every verb opens like any adapter.

    A branch keeps its method with a scaled output, tuned tensors keep theirs with interpolated values; difffit and
    ssf, whose merged weights are interpolated, become the tuned tensors that these are (method `subset`).

    Args:
        keep_head: the tuned head instead of the interpolated one.

    Raises:
        UserError: a method without a rule, a head that started from random values, or a folder that is not empty.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder} exists and is not empty; give another folder")
    adapter = check_alpha(adapted, alpha)
    tensors = {key: value.detach().clone() for key, value in adapter_tensors(adapted, adapted.active).items()}
    head = head_at(adapted, alpha, keep=keep_head)
    tensors |= {f"head.{key}": value.detach().clone() for key, value in head.named_parameters()}
    settings: MethodSettings = adapter.settings
    if adapter.interpolation == "branch" and not isinstance(adapter, NativeAdapter):
        settings = _scale_branch(adapter, alpha * adapter.strength, tensors)
    else:
        tuned = adapted.merged_weights()
        # Inside `_original`, so that the model's tensors are those of alpha 0.
        with adapted._original(), torch.no_grad():
            values = interpolate_weights(adapted.model, tuned, alpha)
            if adapter.interpolation == "weights":
                start = dict(adapted.model.named_parameters(remove_duplicate=False))
                for key in [key for key in tensors if key.startswith("adapter.backbone.")]:
                    name = key.removeprefix("adapter.backbone.")
                    tensors[key] = values.get(name, start[name]).detach().clone()
            else:
                tensors = {key: value for key, value in tensors.items() if not key.startswith("adapter.")}
                tensors |= {f"adapter.backbone.{name}": value for name, value in values.items()}
                # Equal tensors were left out above; a pattern over none of them would select nothing.
                if not values:
                    raise UserError(
                        f"method '{adapter.settings.method}' at alpha {alpha:g} changes no weight: nothing to write"
                    )
                settings = SubsetSettings(pattern="|".join(re.escape(name) for name in sorted(values)))
    return save_adapter(adapted, folder, settings=settings, tensors=tensors, strength=1.0)


def _scale_branch(adapter: object, alpha: float, tensors: dict[str, Tensor]) -> MethodSettings:
    """Return the settings of a branch that is multiplied by alpha; scale its last linear map in `tensors`."""
    settings: MethodSettings = adapter.settings  # pyrefly: ignore[missing-attribute]
    if isinstance(adapter, LoraAdapter):
        # LoRA's scale is alpha / rank of its settings, which PEFT reads too; its B is scaled instead.
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
