"""AdaptFormer: a bottleneck in parallel to the MLP.

Chen et al. 2022, arXiv 2205.13535, section 3.2: MLP(norm2 x) + s Up(dropout(ReLU(Down x))), where the branch reads x
before the norm. ViT-B/16: 12 (1537 r + 768) parameters. Starts as the identity: Down Kaiming, Up 0. Cannot be merged:
the ReLU lies between its matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.adapt.adapter import (
    BlockAdapter,
    Handle,
    Method,
    PassState,
    hook_output,
    init_kaiming,
    init_zero,
    select_blocks,
    watch_input,
)
from foveate.adapt.backbone import Backbone, Block
from foveate.adapt.bottleneck import WHY_NOT_MERGEABLE, Bottleneck, BottleneckSettings


class AdaptformerSettings(BottleneckSettings):
    """Rank, scale and dropout."""

    method: Literal["adaptformer"] = "adaptformer"


class AdaptformerAdapter(BlockAdapter[AdaptformerSettings]):
    """One bottleneck per selected block, parallel to its MLP."""

    why_not_mergeable: ClassVar[str] = WHY_NOT_MERGEABLE

    def __init__(self, settings: AdaptformerSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.blocks = nn.ModuleDict()
        for block in select_blocks(backbone, settings):
            branch = Bottleneck(backbone.block_width(block), settings)
            # Only Up starts at zero. If Down were zero too, neither matrix would ever get a gradient.
            init_kaiming(branch.down)
            init_zero(branch.up)
            self.blocks[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook norm2, whose input the branch reads, and the MLP's end, where it is added."""
        for block in select_blocks(backbone, self.settings):
            yield from self._hook_branch(block)

    def _hook_branch(self, block: Block) -> Iterator[Handle]:
        # The branch needs x before norm2, and is added at the MLP's end: two hooks of one pass.
        branch, state = self.blocks[str(block.number)], PassState()
        norm, end = block.norm2, block.mlp_end
        assert norm is not None
        assert end is not None

        def add(output: Tensor, _: Tensor | None) -> Tensor:
            # Parallel to the MLP, so the branch passes LayerScale and DropPath on its own; it is not inside the MLP's.
            return output + end.pass_inner(branch(state.take(), strength=self.strength))

        yield watch_input(norm, state.put)
        yield hook_output(end.module, add)


METHOD = Method(
    AdaptformerSettings,
    AdaptformerAdapter,
    paper="arXiv 2205.13535",
    location="beside the MLP",
    mergeable=False,
    needs=("blocks", "norms", "norms_in_front", "mlp_end"),
)
