"""Tensors that take turns with a backbone's own: either set is in the backbone, the other waits here.

So every tensor is registered exactly once, whatever is switched on, and switching off gives the very bits of before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterSwap(nn.Module):
    """Other values of some of a model's parameters.

    Attributes:
        names: of the parameters, in the model's terms.
        inside: whether the values given at the start are in the model now.
    """

    def __init__(self, values: Mapping[str, Tensor], *, trained: bool) -> None:
        super().__init__()
        self.names = tuple(values)
        self.inside = False
        for name, value in values.items():
            self.register_parameter(_key(name), nn.Parameter(value, requires_grad=trained))

    @classmethod
    def copies(cls, model: nn.Module, names: tuple[str, ...]) -> ParameterSwap:
        """Trainable copies of a model's parameters of these names."""
        found = dict(model.named_parameters(remove_duplicate=False))
        return cls({name: found[name].detach().clone() for name in names}, trained=True)

    def swap(self, model: nn.Module) -> None:
        """Exchanges the values with the model's; twice is as if nothing had happened."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in self.names:
            owner, _, attribute = name.rpartition(".")
            there, here = modules[owner]._parameters, self._parameters
            there[attribute], here[_key(name)] = here[_key(name)], there[attribute]
        self.inside = not self.inside

    def own(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The values given at the start, as they are now, wherever they are."""
        if not self.inside:
            return {name: self._waiting(name) for name in self.names}
        found = dict(model.named_parameters(remove_duplicate=False))
        return {name: found[name] for name in self.names}

    def others(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The model's values before the exchange, wherever they are."""
        if self.inside:
            return {name: self._waiting(name) for name in self.names}
        found = dict(model.named_parameters(remove_duplicate=False))
        return {name: found[name] for name in self.names}

    def _waiting(self, name: str) -> nn.Parameter:
        value = self._parameters[_key(name)]
        assert value is not None
        return value


def _key(name: str) -> str:
    return name.replace(".", "/")


def wider(value: Tensor) -> Tensor:
    """`value` for exact sums: float64 as it is, everything else in float32."""
    return value.detach() if value.dtype == torch.float64 else value.detach().float()
