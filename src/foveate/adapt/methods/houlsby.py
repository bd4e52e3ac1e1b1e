"""Houlsby's adapters: a bottleneck behind the attention and one behind the MLP.

Houlsby et al. 2019, arXiv 1902.00751, section 2.1. Each is h + s Up(dropout(ReLU(Down h))), h the sublayer's result.
ViT-B/16: 24 (1537 r + 768) parameters. Does not start as the identity: Down and Up Xavier, biases N(0, 1e-6). Cannot be
merged: the ReLU lies between its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from foveate.adapt.adapter import Handle, Method, init_xavier, select_blocks
from foveate.adapt.backbone import Backbone
from foveate.adapt.bottleneck import Bottleneck, SequentialAdapter, SequentialSettings


class HoulsbySettings(SequentialSettings):
    """Rank, scale and dropout."""

    method: Literal["houlsby"] = "houlsby"


class HoulsbyAdapter(SequentialAdapter[HoulsbySettings]):
    """Two bottlenecks per block."""

    def __init__(self, settings: HoulsbySettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.attention, self.mlp = nn.ModuleDict(), nn.ModuleDict()
        for block in select_blocks(backbone, settings):
            for where in (self.attention, self.mlp):
                branch = Bottleneck(backbone.block_width(block), settings)
                # Unlike Pfeiffer's, both matrices start random: this is the published start, and it changes the network
                # at once.
                for linear in (branch.down, branch.up):
                    init_xavier(linear)
                    nn.init.normal_(linear.bias, std=1e-6)
                where[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the end of each sublayer."""
        for block in select_blocks(backbone, self.settings):
            yield self.behind(self.attention[str(block.number)], block.attention_end)
            yield self.behind(self.mlp[str(block.number)], block.mlp_end)


METHOD = Method(
    HoulsbySettings,
    HoulsbyAdapter,
    paper="arXiv 1902.00751",
    location="behind attention and MLP",
    mergeable=False,
    needs=("blocks", "attention_end", "mlp_end"),
)
