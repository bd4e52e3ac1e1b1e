"""Pfeiffer's adapter: a bottleneck behind the MLP, before the residual addition.

Pfeiffer et al. 2021, arXiv 2005.00247, section 3 (the placement that they found best). h + s Up(dropout(ReLU(Down h)))
with h the MLP's result. ViT-B/16: 12 (1537 r + 768) parameters. Starts as the identity: Down Xavier, Up 0. Cannot be
merged: the ReLU lies between its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, Handle, Method, chosen_blocks, on_output, xavier, zero
from foveate.adapt.bottleneck import Bottleneck, SequentialSettings
from foveate.adapt.view import Backbone, Place


class PfeifferSettings(SequentialSettings):
    """Rank, scale and dropout."""

    method: Literal["pfeiffer"] = "pfeiffer"


class PfeifferAdapter(Adapter[PfeifferSettings]):
    """One bottleneck a block."""

    why_not_mergeable: ClassVar[str] = "a ReLU lies between its two matrices, so they are no single matrix"

    def __init__(self, settings: PfeifferSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.blocks = nn.ModuleDict()
        for block in chosen_blocks(backbone, settings):
            branch = Bottleneck(backbone.width, settings)
            xavier(branch.down)
            zero(branch.up)
            self.blocks[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """One at the end of each MLP."""
        for block in chosen_blocks(backbone, self.settings):
            yield on_output(block.mlp_end.module, self._behind(str(block.number), block.mlp_end))

    def _behind(self, number: str, place: Place):  # noqa: ANN202
        branch = self.blocks[number]
        assert isinstance(branch, Bottleneck)
        official = self.settings.layerscale == "official"

        def change(output: Tensor, _: Tensor | None) -> Tensor:
            return branch.after(output, place, strength=self.strength, official=official)

        return change

    def first_block(self, backbone: Backbone) -> int:
        """The first chosen one."""
        return chosen_blocks(backbone, self.settings)[0].number

    def places(self, backbone: Backbone) -> list[str]:
        """The blocks."""
        return [block.name for block in chosen_blocks(backbone, self.settings)]


METHOD = Method(PfeifferSettings, PfeifferAdapter, paper="arXiv 2005.00247", place="behind the MLP", mergeable=False)
