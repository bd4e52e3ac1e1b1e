"""ConvPass: a small 3 x 3 convolution in parallel to attention and MLP.

Jie and Deng 2022, arXiv 2207.07039, section 3.2: y + s Up(dropout(g(Conv3x3(g(Down z))))), g = QuickGELU, z the normed
input of the sublayer; patch tokens are laid out as their grid, and each class or register token passes the same
convolution as an image of one pixel, where only its center acts. ViT-B/16: 24 (1538 r + 768 + 9 r^2) parameters.
Starts as the identity: Down Xavier, Up 0, convolution with ones at its center's diagonal. Cannot be merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import (
    BlockAdapter,
    BranchSettings,
    Handle,
    Method,
    PassState,
    check_rank,
    hook_output,
    init_xavier,
    init_zero,
    quick_gelu,
    select_blocks,
)
from foveate.adapt.backbone import Backbone, SublayerEnd
from foveate.core.errors import UserError


class ConvpassSettings(BranchSettings):
    """Rank, scale, dropout and the convolution's start."""

    method: Literal["convpass"] = "convpass"
    rank: int = Field(8, ge=1, description="r, channels of the convolution")
    scale: float = Field(10.0, description="s, of the branch")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the bottleneck, in training")
    convolution: Literal["identity", "xavier"] = Field("identity", description="first values of the convolution")


class ConvBranch(nn.Module):
    """Branch of one sublayer: s Up(dropout(g(Conv(g(Down z)))))."""

    def __init__(self, width: int, settings: ConvpassSettings, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        rank = check_rank(settings.rank, width)
        self.grid, self.prefix, self.scale = grid, prefix, settings.scale
        self.down = nn.Linear(width, rank)
        self.conv = nn.Conv2d(rank, rank, 3, padding=1)
        self.up = nn.Linear(rank, width)
        self.dropout = nn.Dropout(settings.dropout)
        init_xavier(self.down)
        init_zero(self.up)
        if settings.convolution == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            # The center tap is the identity: the branch begins as a bottleneck token by token and learns to mix
            # neighbors.
            nn.init.zeros_(self.conv.weight)
            with torch.no_grad():
                self.conv.weight[:, :, 1, 1] += torch.eye(rank, device=self.conv.weight.device)
        nn.init.zeros_(self.conv.bias)  # pyrefly: ignore[bad-argument-type]

    def forward(self, z_BLD: Tensor, *, strength: float) -> Tensor:
        """Map the normed input z [B, L, D] to the branch that is added, [B, L, D]; `strength` multiplies it."""
        low_BLR = quick_gelu(self.down(z_BLD))
        batch, length, rank = low_BLR.shape
        rows, columns = self._grid_of(length - self.prefix)
        # [B, N, r] to [B, r, rows, columns]: patch tokens are in row-major order in every backbone of the map.
        patches = low_BLR[:, self.prefix :].transpose(1, 2).reshape(batch, rank, rows, columns)
        patches_BNR = self.conv(patches).flatten(2).transpose(1, 2)
        if self.prefix:
            # A class token is an image of one pixel: of the convolution only its center reads it.
            center = self.conv.weight[:, :, 1, 1]
            first = F.linear(low_BLR[:, : self.prefix], center, self.conv.bias)
            patches_BNR = torch.cat([first, patches_BNR], dim=1)
        return self.up(self.dropout(quick_gelu(patches_BNR))) * (self.scale * strength)

    def _grid_of(self, patches: int) -> tuple[int, int]:
        """Return rows and columns of the patches; a square for another image size than the backbone's own."""
        if patches == self.grid[0] * self.grid[1]:
            return self.grid
        side = round(patches**0.5)
        if side * side != patches:
            raise UserError(
                f"convpass: {patches} patches do not form a square; "
                f"expected the backbone's grid of {self.grid} or a square"
            )
        return side, side


class ConvpassAdapter(BlockAdapter[ConvpassSettings]):
    """Two branches per selected block: parallel to the attention and to the MLP."""

    why_not_mergeable: ClassVar[str] = "it mixes neighboring patches and has activations inside; no matrix does that"

    def __init__(self, settings: ConvpassSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.attention, self.mlp = nn.ModuleDict(), nn.ModuleDict()
        for block in select_blocks(backbone, settings):
            for where in (self.attention, self.mlp):
                branch = ConvBranch(backbone.width, settings, backbone.grid, backbone.prefix_tokens)
                where[str(block.number)] = branch

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each sublayer's norm, whose output the branch reads, and its end, where it is added."""
        for block in select_blocks(backbone, self.settings):
            number = str(block.number)
            yield from self._hook_branch(self.attention[number], block.norm1, block.attention_end)
            yield from self._hook_branch(self.mlp[number], block.norm2, block.mlp_end)

    def _hook_branch(self, branch: nn.Module, norm: nn.Module | None, end: SublayerEnd | None) -> Iterator[Handle]:
        # Read behind the norm, added behind the sublayer: two hooks of one pass.
        state = PassState()
        assert norm is not None
        assert end is not None

        def store(z_BLD: Tensor, _: Tensor | None) -> Tensor:
            state.put(z_BLD)
            return z_BLD

        def add(output: Tensor, _: Tensor | None) -> Tensor:
            return output + end.pass_inner(branch(state.take(), strength=self.strength))

        yield hook_output(norm, store)
        yield hook_output(end.module, add)


METHOD = Method(
    ConvpassSettings,
    ConvpassAdapter,
    paper="arXiv 2207.07039",
    location="beside attention and MLP",
    mergeable=False,
    needs=("blocks", "norms", "norms_in_front", "attention_end", "mlp_end", "grid"),
)
