"""Houlsby's adapters: a bottleneck behind the attention and one behind the MLP.

Houlsby et al. 2019, arXiv 1902.00751, section 2.1. Each is h + s Up(dropout(ReLU(Down h))), h the sublayer's result.
ViT-B/16: 24 (1537 r + 768) parameters. Does not start as the identity: Down and Up Xavier, biases N(0, 1e-6). Cannot be
merged: the ReLU lies between its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, Handle, Method, chosen_blocks, on_output, xavier
from foveate.adapt.bottleneck import Bottleneck, SequentialSettings
from foveate.adapt.view import Backbone, Place


class HoulsbySettings(SequentialSettings):
    """Rank, scale and dropout."""

    method: Literal["houlsby"] = "houlsby"


class HoulsbyAdapter(Adapter[HoulsbySettings]):
    """Two bottlenecks a block."""

    why_not_mergeable: ClassVar[str] = "a ReLU lies between its two matrices, so they are no single matrix"

    def __init__(self, settings: HoulsbySettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.attention, self.mlp = nn.ModuleDict(), nn.ModuleDict()
        for block in chosen_blocks(backbone, settings):
            for where in (self.attention, self.mlp):
                branch = Bottleneck(backbone.width, settings)
                for linear in (branch.down, branch.up):
                    xavier(linear)
                    nn.init.normal_(linear.bias, std=1e-6)
                where[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """One at the end of each sublayer."""
        for block in chosen_blocks(backbone, self.settings):
            number = str(block.number)
            yield on_output(block.attention_end.module, self._behind(self.attention[number], block.attention_end))
            yield on_output(block.mlp_end.module, self._behind(self.mlp[number], block.mlp_end))

    def _behind(self, branch: nn.Module, place: Place):  # noqa: ANN202
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


METHOD = Method(
    HoulsbySettings, HoulsbyAdapter, paper="arXiv 1902.00751", place="behind attention and MLP", mergeable=False
)
