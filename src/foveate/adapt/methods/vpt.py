"""Visual prompt tuning, shallow and deep: learned tokens behind the others."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, Handle, Method, MethodSettings, hook_input, hook_output, select_blocks
from foveate.adapt.backbone import Backbone, TransformerBlock

# Learned tokens behind the others: both forms of visual prompt tuning.
#
# Jia et al. 2022, arXiv 2203.12119, section 3.2. Attention does not see the order of its tokens, so prompts come last:
# class token and patches keep their positions, and whatever reads them afterwards is unchanged.


class PromptSettings(MethodSettings):
    """Number and dropout."""

    prompts: int = Field(10, ge=1, description="n, learned tokens")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the prompts, in training")


P = TypeVar("P", bound=PromptSettings)


class PromptAdapter(Adapter[P]):
    """Prompts [layers, n, D], uniform in (-v, v), v = sqrt(6 / (3 patch^2 + D))."""

    why_not_mergeable: ClassVar[str] = "its prompts are further tokens, and no weight of the backbone is one"
    interpolation: ClassVar[Literal["branch", "weights", "merged", ""]] = ""

    def __init__(self, settings: P, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        layers = len(self.blocks(backbone))
        # Xavier's bound of the patch embedding, from 3 patch^2 values to D channels, whatever the number of channels:
        # as published.
        limit = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.width))
        self.prompts = nn.Parameter(torch.empty(layers, settings.prompts, backbone.width).uniform_(-limit, limit))
        self.dropout = nn.Dropout(settings.dropout)

    @abstractmethod
    def blocks(self, backbone: Backbone) -> tuple[TransformerBlock, ...]:
        """Return the blocks in front of which prompts enter."""

    def first_block(self, backbone: Backbone) -> int:
        """Return the first block with prompts."""
        return self.blocks(backbone)[0].number

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the blocks with prompts."""
        return [block.name for block in self.blocks(backbone)]

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


# Visual prompt tuning, shallow: n learned tokens enter in front of the first block and stay to the end.
#
# Jia et al. 2022, arXiv 2203.12119, section 3.2. ViT-B/16: 768 n parameters. Does not start as the identity. Cannot be
# merged: prompts are tokens. The study's released code (arXiv 2409.16434) takes the prompts out again behind the first
# block: keep_prompts: false.


class VptShallowSettings(PromptSettings):
    """Number, dropout, and how long the prompts stay."""

    method: Literal["vpt_shallow"] = "vpt_shallow"
    keep_prompts: bool = Field(True, description="to the last block (published), or only in the first (study's code)")


class VptShallowAdapter(PromptAdapter[VptShallowSettings]):
    """One set of n prompts: [1, n, D]."""

    def blocks(self, backbone: Backbone) -> tuple[TransformerBlock, ...]:
        """Return the first block."""
        return backbone.require_blocks("vpt_shallow")[:1]

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the input of the first block, and the output of the last block that sees the prompts."""
        yield self.enter(backbone.blocks[0].module, 0)
        # Removed before the final norm: a head that averages over all tokens must not count prompts.
        yield self.leave(backbone.blocks[-1 if self.settings.keep_prompts else 0].module)


VPT_SHALLOW = Method(
    VptShallowSettings,
    VptShallowAdapter,
    paper="arXiv 2203.12119",
    location="tokens in front of the first block",
    mergeable=False,
    needs=("blocks", "free_tokens"),
)


# Visual prompt tuning, deep: each block has n learned tokens of its own, taken out again behind it.
#
# Jia et al. 2022, arXiv 2203.12119, section 3.2. ViT-B/16: 9,216 n parameters. Does not start as the identity. Cannot
# be merged: prompts are tokens.


class VptDeepSettings(PromptSettings):
    """Number, dropout and blocks."""

    method: Literal["vpt_deep"] = "vpt_deep"
    last_blocks: int | None = Field(None, ge=1, description="only in the last blocks, this many; all by default")


class VptDeepAdapter(PromptAdapter[VptDeepSettings]):
    """A set of n prompts for each selected block: [blocks, n, D]."""

    def blocks(self, backbone: Backbone) -> tuple[TransformerBlock, ...]:
        """Return the selected blocks."""
        return select_blocks(backbone, self.settings)

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the input and the output of each block."""
        # Removed behind each block, so that the next gets its own prompts and the sequence does not grow.
        for layer, block in enumerate(self.blocks(backbone)):
            yield self.enter(block.module, layer)
            yield self.leave(block.module)


VPT_DEEP = Method(
    VptDeepSettings,
    VptDeepAdapter,
    paper="arXiv 2203.12119",
    location="tokens in front of each block",
    mergeable=False,
    needs=("blocks", "free_tokens"),
)
