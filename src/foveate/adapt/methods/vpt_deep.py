"""Visual prompt tuning, deep: each block has n learned tokens of its own, taken out again behind it.

Jia et al. 2022, arXiv 2203.12119, section 3.2. ViT-B/16: 9,216 n parameters. Does not start as the identity. Cannot be
merged: prompts are tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from foveate.adapt.adapter import Handle, Method
from foveate.adapt.backbone import Backbone, Block
from foveate.adapt.prompts import PromptAdapter, PromptSettings
from foveate.core.errors import UserError


class VptDeepSettings(PromptSettings):
    """Number, dropout and blocks."""

    method: Literal["vpt_deep"] = "vpt_deep"
    last_blocks: int | None = Field(None, ge=1, description="only in the last blocks, this many; all by default")


class VptDeepAdapter(PromptAdapter[VptDeepSettings]):
    """A set of n prompts for each selected block: [blocks, n, D]."""

    def __init__(self, settings: VptDeepSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self._make(backbone, len(self._blocks(backbone)), settings)

    def _blocks(self, backbone: Backbone) -> tuple[Block, ...]:
        blocks, last = backbone.require_blocks("vpt_deep"), self.settings.last_blocks
        if last is not None and last > len(blocks):
            raise UserError(f"last_blocks must be at most {len(blocks)}, the blocks of this backbone (got {last})")
        return blocks if last is None else blocks[-last:]

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        # Removed behind each block, so that the next gets its own prompts and the sequence does not grow.
        """Hook the input and the output of each block."""
        for layer, block in enumerate(self._blocks(backbone)):
            yield self.enter(block.module, layer)
            yield self.leave(block.module)

    def first_block(self, backbone: Backbone) -> int:
        """Return the first block with prompts."""
        return self._blocks(backbone)[0].number

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the blocks."""
        return [block.name for block in self._blocks(backbone)]


METHOD = Method(
    VptDeepSettings,
    VptDeepAdapter,
    paper="arXiv 2203.12119",
    location="tokens in front of each block",
    mergeable=False,
    needs=("blocks", "free_tokens"),
)
