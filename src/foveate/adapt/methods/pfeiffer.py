"""Pfeiffer's adapter: a bottleneck behind the MLP, before the residual addition.

Pfeiffer et al. 2021, arXiv 2005.00247, section 3 (the placement that they found best). h + s Up(dropout(ReLU(Down h)))
with h the MLP's result. ViT-B/16: 12 (1537 r + 768) parameters. Starts as the identity: Down Xavier, Up 0. Cannot be
merged: the ReLU lies between its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from foveate.adapt.adapter import Handle, Method, init_xavier, init_zero, select_blocks
from foveate.adapt.backbone import Backbone
from foveate.adapt.bottleneck import Bottleneck, SequentialAdapter, SequentialSettings


class PfeifferSettings(SequentialSettings):
    """Rank, scale and dropout."""

    method: Literal["pfeiffer"] = "pfeiffer"


class PfeifferAdapter(SequentialAdapter[PfeifferSettings]):
    """One bottleneck per selected block, behind its MLP."""

    def __init__(self, settings: PfeifferSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.blocks = nn.ModuleDict()
        for block in select_blocks(backbone, settings):
            branch = Bottleneck(backbone.block_width(block), settings)
            # Only Up starts at zero. If Down were zero too, neither matrix would ever get a gradient.
            init_xavier(branch.down)
            init_zero(branch.up)
            self.blocks[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the end of each MLP."""
        for block in select_blocks(backbone, self.settings):
            yield self.behind(self.blocks[str(block.number)], block.mlp_end)


METHOD = Method(
    PfeifferSettings,
    PfeifferAdapter,
    paper="arXiv 2005.00247",
    location="behind the MLP",
    mergeable=False,
    needs=("blocks", "mlp_end"),
)
