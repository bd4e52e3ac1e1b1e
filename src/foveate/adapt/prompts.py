"""Learned tokens behind the others: both forms of visual prompt tuning.

Jia et al. 2022, arXiv 2203.12119, section 3.2. Attention does not see the order of its tokens, so prompts come last:
class token and patches keep their positions, and whatever reads them afterwards is unchanged.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, Handle, MethodSettings, hook_input, hook_output
from foveate.adapt.backbone import Backbone


class PromptSettings(MethodSettings):
    """Number and dropout."""

    prompts: int = Field(10, ge=1, description="n, learned tokens")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the prompts, in training")


P = TypeVar("P", bound=PromptSettings)


class PromptAdapter(Adapter[P]):
    """Prompts [layers, n, D], uniform in (-v, v), v = sqrt(6 / (3 patch^2 + D))."""

    why_not_mergeable: ClassVar[str] = "its prompts are further tokens, and no weight of the backbone is one"
    interpolation: ClassVar[Literal["branch", "weights", "merged", ""]] = ""

    def _make(self, backbone: Backbone, layers: int, settings: PromptSettings) -> None:
        # Xavier's bound of the patch embedding, from 3 patch^2 values to D channels, whatever the number of channels:
        # as published.
        limit = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.width))
        self.prompts = nn.Parameter(torch.empty(layers, settings.prompts, backbone.width).uniform_(-limit, limit))
        self.dropout = nn.Dropout(settings.dropout)

    def enter(self, module: nn.Module, layer: int) -> Handle:
        """Append prompts to a module's input; dropout draws for each sample."""

        def change(x_BLD: Tensor) -> Tensor:
            prompts = self.prompts[layer].to(x_BLD.dtype).expand(len(x_BLD), -1, -1)
            # Expanded before dropout: one mask for all samples would be the same prompts with noise.
            return torch.cat([x_BLD, self.dropout(prompts)], dim=1)

        return hook_input(module, change)

    def leave(self, module: nn.Module) -> Handle:
        """Remove the last n tokens of a module's output."""
        count = self.prompts.shape[1]
        return hook_output(module, lambda output, _: output[:, :-count])
