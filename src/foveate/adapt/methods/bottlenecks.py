"""Methods that add a branch: AdaptFormer, Pfeiffer, Houlsby, RepAdapter and ConvPass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import (
    Adapter,
    BlockAdapter,
    BranchSettings,
    Handle,
    Method,
    PassState,
    check_rank,
    hook_output,
    init_kaiming,
    init_xavier,
    init_zero,
    quick_gelu,
    select_blocks,
    upcast,
    watch_input,
)
from foveate.adapt.backbone import Backbone, SublayerEnd, get_tensor
from foveate.core.errors import UserError

# Down, ReLU, dropout, up: the branch of AdaptFormer, Pfeiffer and Houlsby adapters.


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
        # Shape (1,), not (): FSDP2 shards the first dimension.
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


def add_beside(adapter: Adapter[Any], branch: nn.Module, state: PassState, end: SublayerEnd | None) -> Handle:
    """Add a branch parallel to a sublayer: it reads what an earlier hook of the pass stored in `state`."""
    assert end is not None

    def add(output: Tensor, _: Tensor | None) -> Tensor:
        # Parallel to the sublayer, so the branch passes LayerScale and DropPath on its own; it is not inside its.
        return output + end.pass_inner(branch(state.take(), strength=adapter.strength))

    return hook_output(end.module, add)


# AdaptFormer: a bottleneck in parallel to the MLP.
#
# Chen et al. 2022, arXiv 2205.13535, section 3.2: MLP(norm2 x) + s Up(dropout(ReLU(Down x))), where the branch reads x
# before the norm. ViT-B/16: 12 (1537 r + 768) parameters. Starts as the identity: Down Kaiming, Up 0. Cannot be merged:
# the ReLU lies between its matrices.


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
            assert block.norm2 is not None
            state = PassState()
            yield watch_input(block.norm2, state.put)
            yield add_beside(self, self.blocks[str(block.number)], state, block.mlp_end)


ADAPTFORMER = Method(
    AdaptformerSettings,
    AdaptformerAdapter,
    paper="arXiv 2205.13535",
    location="beside the MLP",
    mergeable=False,
    needs=("blocks", "norms", "norms_in_front", "mlp_end"),
)


# Pfeiffer's adapter: a bottleneck behind the MLP, before the residual addition.
#
# Pfeiffer et al. 2021, arXiv 2005.00247, section 3 (the placement that they found best). h + s Up(dropout(ReLU(Down
# h))) with h the MLP's result. ViT-B/16: 12 (1537 r + 768) parameters. Starts as the identity: Down Xavier, Up 0.
# Cannot be merged: the ReLU lies between its matrices.


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


PFEIFFER = Method(
    PfeifferSettings,
    PfeifferAdapter,
    paper="arXiv 2005.00247",
    location="behind the MLP",
    mergeable=False,
    needs=("blocks", "mlp_end"),
)


# Houlsby's adapters: a bottleneck behind the attention and one behind the MLP.
#
# Houlsby et al. 2019, arXiv 1902.00751, section 2.1. Each is h + s Up(dropout(ReLU(Down h))), h the sublayer's result.
# ViT-B/16: 24 (1537 r + 768) parameters. Does not start as the identity: Down and Up Xavier, biases N(0, 1e-6). Cannot
# be merged: the ReLU lies between its matrices.


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


HOULSBY = Method(
    HoulsbySettings,
    HoulsbyAdapter,
    paper="arXiv 1902.00751",
    location="behind attention and MLP",
    mergeable=False,
    needs=("blocks", "attention_end", "mlp_end"),
)


# RepAdapter: a linear bottleneck in front of qkv and of fc1, which disappears into them.
#
# Luo et al. 2023, arXiv 2302.08106, section 3.2: z <- z + s (B(dropout(A z + a)) + b), B block-diagonal in groups.
# ViT-B/16: 24 (768 r + r + 768 r / groups + 768) parameters. Starts as the identity: A Xavier, B 0. Merges: with
# M = 1 + s B A and c = s (B a + b), first b0 <- b0 + W c, then W <- W M.


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


REPADAPTER = Method(
    RepadapterSettings,
    RepadapterAdapter,
    paper="arXiv 2302.08106",
    location="in front of qkv and fc1",
    mergeable=True,
    needs=("blocks", "norms", "norms_in_front", "projections", "mlps", "whole_tokens"),
)


# ConvPass: a small 3 x 3 convolution in parallel to attention and MLP.
#
# Jie and Deng 2022, arXiv 2207.07039, section 3.2: y + s Up(dropout(g(Conv3x3(g(Down z))))), g = QuickGELU, z the
# normed input of the sublayer; patch tokens are laid out as their grid, and each class or register token passes the
# same convolution as an image of one pixel, where only its center acts. ViT-B/16: 24 (1538 r + 768 + 9 r^2) parameters.
# Starts as the identity: Down Xavier, Up 0, convolution with ones at its center's diagonal. Cannot be merged.


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
            for branches, norm, end in zip((self.attention, self.mlp), block.norms, block.ends, strict=True):
                state = PassState()
                yield hook_output(norm, functools.partial(_store, state))
                yield add_beside(self, branches[str(block.number)], state, end)


def _store(state: PassState, z_BLD: Tensor, _: Tensor | None) -> Tensor:
    state.put(z_BLD)
    return z_BLD


CONVPASS = Method(
    ConvpassSettings,
    ConvpassAdapter,
    paper="arXiv 2207.07039",
    location="beside attention and MLP",
    mergeable=False,
    needs=("blocks", "norms", "norms_in_front", "attention_end", "mlp_end", "grid"),
)
