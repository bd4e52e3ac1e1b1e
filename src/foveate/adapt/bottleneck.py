"""Down, ReLU, dropout, up: the branch of AdaptFormer, Pfeiffer and Houlsby adapters."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import BlockAdapter, BranchSettings, Handle, check_rank, hook_output
from foveate.adapt.backbone import SublayerEnd

WHY_NOT_MERGEABLE = "a ReLU lies between its two matrices, so they are no single matrix"


class BottleneckSettings(BranchSettings):
    """Fields that all bottleneck adapters share."""

    rank: int = Field(64, ge=1, description="r, width of the bottleneck")
    scale: float | Literal["learnable"] = Field(0.1, description="s, of the branch; learnable = one number, first 1")
    dropout: float = Field(0.1, ge=0, lt=1, description="behind the ReLU, in training")


class SequentialSettings(BottleneckSettings):
    """Fields of adapters that sit behind a sublayer."""

    layerscale: Literal["once", "official"] = Field(
        "once",
        description="LayerScale and DropPath act on the sublayer alone, or (official: the study's code) once more on "
        "the sum of sublayer and adapter, which nearly erases it where LayerScale is small",
    )


class Bottleneck(nn.Module):
    """Branch of one adapter: s Up(dropout(ReLU(Down x))).

    Initial values are set by the method: the three adapters differ in them.
    """

    def __init__(self, width: int, settings: BottleneckSettings) -> None:
        super().__init__()
        rank = check_rank(settings.rank, width)
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        self.dropout = nn.Dropout(settings.dropout)
        # Of shape (1,), not (): FSDP2 shards the first dimension.
        self.learnt_scale = nn.Parameter(torch.ones(1)) if settings.scale == "learnable" else None
        self.scale = 1.0 if settings.scale == "learnable" else float(settings.scale)

    def forward(self, x_BLD: Tensor, *, strength: float) -> Tensor:
        """Map [B, L, D] to [B, L, D]; `strength` multiplies the result."""
        branch = self.up(self.dropout(F.relu(self.down(x_BLD)))) * (self.scale * strength)
        # Cast: under autocast the branch is bfloat16 while the scale stays float32, and the product would be promoted.
        return branch if self.learnt_scale is None else branch * self.learnt_scale.to(branch.dtype)


Seq = TypeVar("Seq", bound=SequentialSettings)


class SequentialAdapter(BlockAdapter[Seq]):
    """Bottlenecks behind sublayers: h + s Up(dropout(ReLU(Down h))), h the sublayer's result."""

    why_not_mergeable: ClassVar[str] = WHY_NOT_MERGEABLE

    def behind(self, branch: nn.Module, end: SublayerEnd | None) -> Handle:
        """Hook a sublayer's end, so that its result passes a bottleneck."""

        assert end is not None

        def change(output_BLD: Tensor, _: Tensor | None) -> Tensor:
            # The hook stands behind the sublayer's LayerScale, so by default the adapter's own part does not pass it.
            total = output_BLD + branch(output_BLD, strength=self.strength)
            return end.pass_inner(total) if self.settings.layerscale == "official" else total

        return hook_output(end.module, change)
