"""Visual prompt tuning, shallow: n learned tokens enter in front of the first block and stay to the end.

Jia et al. 2022, arXiv 2203.12119, section 3.2. ViT-B/16: 768 n parameters. Does not start as the identity. Cannot be
merged: prompts are tokens. The study's released code (arXiv 2409.16434) takes the prompts out again behind the first
block: keep_prompts: false.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from foveate.adapt.adapter import Handle, Method
from foveate.adapt.backbone import Backbone
from foveate.adapt.prompts import PromptAdapter, PromptSettings


class VptShallowSettings(PromptSettings):
    """Number, dropout, and how long the prompts stay."""

    method: Literal["vpt_shallow"] = "vpt_shallow"
    keep_prompts: bool = Field(True, description="to the last block (published), or only in the first (study's code)")


class VptShallowAdapter(PromptAdapter[VptShallowSettings]):
    """One set of n prompts: [1, n, D]."""

    def __init__(self, settings: VptShallowSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        backbone.require_blocks("vpt_shallow")
        self._make(backbone, 1, settings)

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the input of the first block, and the output of the last block that sees the prompts."""
        yield self.enter(backbone.blocks[0].module, 0)
        # Removed before the final norm: a head that averages over all tokens must not count prompts.
        yield self.leave(backbone.blocks[-1 if self.settings.keep_prompts else 0].module)

    def first_block(self, backbone: Backbone) -> int:
        """Return 0: prompts enter in front of the first block."""
        return 0

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the name of the first block."""
        return [backbone.blocks[0].name]


METHOD = Method(
    VptShallowSettings,
    VptShallowAdapter,
    paper="arXiv 2203.12119",
    location="tokens in front of the first block",
    mergeable=False,
    needs=("blocks", "free_tokens"),
)
