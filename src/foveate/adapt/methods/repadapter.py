"""RepAdapter: a linear bottleneck in front of qkv and of fc1, which disappears into them.

Luo et al. 2023, arXiv 2302.08106, section 3.2: z <- z + s (B(dropout(A z + a)) + b), B block-diagonal in groups.
ViT-B/16: 24 (768 r + r + 768 r / groups + 768) parameters. Starts as the identity: A Xavier, B 0. Merges: with
M = 1 + s B A and c = s (B a + b), first b0 <- b0 + W c, then W <- W M.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import BlockAdapter, BranchSettings, Handle, Method, check_rank, hook_output, select_blocks
from foveate.adapt.backbone import Backbone, get_tensor
from foveate.adapt.parameter_swap import upcast
from foveate.core.errors import UserError


class RepadapterSettings(BranchSettings):
    """Rank, groups, scale and dropout."""

    method: Literal["repadapter"] = "repadapter"
    rank: int = Field(8, ge=1, description="r, width of the bottleneck")
    groups: int = Field(2, ge=1, description="blocks of B; divides rank and width")
    scale: float = Field(1.0, description="s, of the branch")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the bottleneck, in training")


class LinearBottleneck(nn.Module):
    """Affine map with a low-rank part: z + s (B(dropout(A z + a)) + b)."""

    def __init__(self, width: int, settings: RepadapterSettings) -> None:
        super().__init__()
        rank, groups = check_rank(settings.rank, width), settings.groups
        if rank % groups or width % groups:
            raise UserError(f"groups of repadapter must divide the rank {rank} and the width {width} (got {groups})")
        self.groups, self.scale = groups, settings.scale
        # Plain parameters: the released code's network draws linear layers anew, and there these are not linear layers.
        self.a_weight, self.a_bias = nn.Parameter(torch.empty(rank, width)), nn.Parameter(torch.zeros(rank))
        self.b_weight = nn.Parameter(torch.zeros(width, rank // groups))
        self.b_bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.xavier_uniform_(self.a_weight)

    def forward(self, z_BLD: Tensor, *, strength: float) -> Tensor:
        """Map the normed input z [B, L, D] to what the projection reads instead, [B, L, D]."""
        low = self.dropout(torch.nn.functional.linear(z_BLD, self.a_weight, self.a_bias))
        # As a grouped 1 x 1 convolution: output channels of group k read only channels k r/g to (k + 1) r/g of the
        # bottleneck. Shapes [B, L, g, r/g] and [g, D/g, r/g].
        parts = low.unflatten(-1, (self.groups, -1))
        weight = self.b_weight.unflatten(0, (self.groups, -1))
        high = torch.einsum("...gr,gdr->...gd", parts, weight.to(parts.dtype)).flatten(-2) + self.b_bias.to(low.dtype)
        return z_BLD + high * (self.scale * strength)

    def matrices(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return M [D, D] and c [D] of the affine map that `forward` is without dropout."""
        factor = self.scale * strength
        a, b = upcast(self.a_weight), torch.block_diag(*upcast(self.b_weight).chunk(self.groups))
        eye = torch.eye(len(b), dtype=a.dtype, device=a.device)
        return eye + factor * (b @ a), factor * (b @ upcast(self.a_bias) + upcast(self.b_bias))


class RepadapterAdapter(BlockAdapter[RepadapterSettings]):
    """Two bottlenecks per selected block: in front of qkv and in front of fc1."""

    def __init__(self, settings: RepadapterSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        self.attention, self.mlp = nn.ModuleDict(), nn.ModuleDict()
        for block in select_blocks(backbone, settings):
            for where in (self.attention, self.mlp):
                where[str(block.number)] = LinearBottleneck(backbone.width, settings)

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each norm: what reads its output reads the bottleneck's."""
        # At the norm's output, not at the input of qkv: with separate q, k and v one hook serves all three.
        for block in select_blocks(backbone, self.settings):
            norm1, norm2 = block.norms
            yield hook_output(norm1, self._through(self.attention[str(block.number)]))
            yield hook_output(norm2, self._through(self.mlp[str(block.number)]))

    def _through(self, bottleneck: nn.Module):  # noqa: ANN202
        return lambda z_BLD, _: bottleneck(z_BLD, strength=self.strength)

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the projections behind the bottlenecks."""
        names = []
        for block in select_blocks(backbone, self.settings):
            assert block.fc1 is not None
            names += [backbone.name_of(module) for module in (*block.qkv, block.fc1)]
        return names

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return W M and b0 + W c of qkv and fc1.

        Raises:
            UserError: a projection has no bias.
        """
        tensors = {}
        for block in select_blocks(backbone, self.settings):
            assert block.fc1 is not None
            attention, mlp = self.attention[str(block.number)], self.mlp[str(block.number)]
            assert isinstance(attention, LinearBottleneck)
            assert isinstance(mlp, LinearBottleneck)
            for module, bottleneck in (*((part, attention) for part in block.qkv), (block.fc1, mlp)):
                weight, bias = get_tensor(module, "weight"), get_tensor(module, "bias")
                assert weight is not None
                if bias is None:
                    raise UserError(
                        f"repadapter cannot be merged here: {backbone.name_of(module)} has no bias that could take "
                        "the constant part"
                    )
                matrix, constant = bottleneck.matrices(self.strength)
                # Both from the original W: the constant passes the projection, not the map in front of it.
                tensors[backbone.key(module, "bias")] = upcast(bias) + upcast(weight) @ constant
                tensors[backbone.key(module, "weight")] = upcast(weight) @ matrix
        return tensors


METHOD = Method(
    RepadapterSettings,
    RepadapterAdapter,
    paper="arXiv 2302.08106",
    location="in front of qkv and fc1",
    mergeable=True,
    needs=("blocks", "norms", "norms_in_front", "projections", "mlps", "whole_tokens"),
)
