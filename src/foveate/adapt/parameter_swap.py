"""Swap a backbone's parameters with tuned copies: one set is in the backbone, the other is stored here.

So every tensor is registered exactly once, whichever set is active, and swapping back restores the original bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterSwap(nn.Module):
    """Alternative values of some parameters of a model.

    Attributes:
        names: of the parameters, as the model names them.
        is_active: whether the alternative values are in the model now.
    """

    def __init__(self, values: Mapping[str, Tensor], *, trained: bool) -> None:
        super().__init__()
        self.names = tuple(values)
        self.is_active = False
        for name, value in values.items():
            self.register_parameter(_key(name), nn.Parameter(value, requires_grad=trained))

    @classmethod
    def copy_from(cls, model: nn.Module, names: tuple[str, ...]) -> ParameterSwap:
        """Copy a model's parameters of these names, trainable."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return cls({name: parameters[name].detach().clone() for name in names}, trained=True)

    def swap(self, model: nn.Module) -> None:
        """Exchange the values with the model's; calling it twice changes nothing."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in self.names:
            owner, _, attribute = name.rpartition(".")
            # Written to `_parameters` and not by setattr: the tensors themselves move, so that an optimizer that
            # holds one keeps training it, and a swap costs no copy.
            in_model, in_swap = modules[owner]._parameters, self._parameters
            in_model[attribute], in_swap[_key(name)] = in_swap[_key(name)], in_model[attribute]
        self.is_active = not self.is_active
        # LeViT, TinyViT and EfficientFormer cache in evaluation what they compute of these parameters.
        for module in modules.values():
            cache = getattr(module, "attention_bias_cache", None)
            if isinstance(cache, dict):
                cache.clear()

    def tuned_values(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the alternative values, wherever they are now."""
        return self._from_model(model) if self.is_active else self._from_storage()

    def original_values(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's values from before the swap, wherever they are now."""
        return self._from_storage() if self.is_active else self._from_model(model)

    def _from_model(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {name: parameters[name] for name in self.names}

    def _from_storage(self) -> dict[str, nn.Parameter]:
        stored = {name: self._parameters[_key(name)] for name in self.names}
        assert all(value is not None for value in stored.values())
        return {name: value for name, value in stored.items() if value is not None}


def _key(name: str) -> str:
    # A parameter's name in a module may not hold a dot.
    return name.replace(".", "/")


def upcast(value: Tensor) -> Tensor:
    """Return the values detached and in float32 at least, for sums of weights.

    Sums in bfloat16 or float16 would round the small changes of an adapter away.
    """
    return value.detach() if value.dtype == torch.float64 else value.detach().float()
