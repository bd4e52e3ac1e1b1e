"""Both forms of FacT: added weights s V T U, with U and V common to the whole network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.adapter import (
    BlockAdapter,
    BranchSettings,
    Handle,
    Method,
    check_rank,
    hook_output,
    init_zero,
    select_blocks,
    upcast,
)
from foveate.adapt.backbone import Backbone, get_tensor
from foveate.core.errors import UserError

# Both forms of FacT: added weights s V T U, with U and V common to the whole network.
#
# Jie and Deng 2023, arXiv 2212.03145, section 3. Every d x d part of qkv, proj, fc1 and fc2 has a core T (r x r); fc1
# and fc2 count as m parts, m = hidden width / d. Merges: W += s V T U.


class FactSettings(BranchSettings):
    """Rank, scale and dropout."""

    rank: int = Field(8, ge=1, description="r, of the common factors")
    scale: float = Field(1.0, description="s, of the added weights")
    dropout: float = Field(0.1, ge=0, lt=1, description="in the bottleneck, in training")


FactS = TypeVar("FactS", bound=FactSettings)


class FactAdapter(BlockAdapter[FactS]):
    """The factors U [r, D] and V [D, r] of the whole network; a subclass adds the cores of each block.

    Attributes:
        ratio: m, how many times wider the MLP is.
    """

    def __init__(self, settings: FactS, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        blocks = select_blocks(backbone, settings)
        width = backbone.width
        rank = check_rank(settings.rank, width)
        # U and V serve all blocks, so every MLP must split into the same whole number of parts of D channels.
        hidden = {len(block.outputs[1].get_parameter("weight")) for block in backbone.blocks}
        if len(hidden) > 1 or min(hidden) % width:
            raise UserError(
                f"{settings.method}: hidden widths {sorted(hidden)} must be one multiple of the width {width}"
            )
        self.ratio = hidden.pop() // width
        self.u = nn.Linear(width, rank, bias=False)
        self.v = nn.Linear(rank, width, bias=False)
        init_zero(self.v)  # starts as the identity
        self.dropout = nn.Dropout(settings.dropout)
        self.build_cores(rank, len(blocks))

    @abstractmethod
    def build_cores(self, rank: int, blocks: int) -> None:
        """Create the parameters of the cores."""

    @abstractmethod
    def cores(self, index: int) -> dict[str, Tensor]:
        """Return the cores of the `index`-th selected block.

        "q", "k", "v", "proj" [r, r], "fc1" [m r, r], "fc2" [r, m r]: each maps U x to what V takes.
        """

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each projection."""
        for index, block in enumerate(select_blocks(backbone, self.settings)):
            # One hook per module: a fused qkv takes the three results side by side, separate projections take theirs.
            parts = (("q", "k", "v"),) if len(block.qkv) == 1 else (("q",), ("k",), ("v",))
            proj, fc1, fc2 = block.outputs
            for module, names in zip(block.qkv, parts, strict=True):
                yield hook_output(module, self._added(index, names))
            yield hook_output(proj, self._added(index, ("proj",)))
            yield hook_output(fc1, self._added(index, ("fc1",)))
            yield hook_output(fc2, self._added(index, ("fc2",)))

    def _added(self, index: int, names: tuple[str, ...]) -> Any:
        def change(output: Tensor, x: Tensor | None) -> Tensor:
            assert x is not None
            cores = self.cores(index)
            factor = self.settings.scale * self.strength
            return output + self._high(x, [cores[name] for name in names], narrow=names == ("fc2",)) * factor

        return change

    def _high(self, x: Tensor, cores: list[Tensor], *, narrow: bool) -> Tensor:
        """Return V T U x [..., D]; with several cores, or one of m r rows, their results side by side [..., m D]."""
        rank = self.settings.rank
        if narrow:
            # fc2 reads m d channels: U acts on each part of d, and the core of m r columns adds the parts up.
            low = self.u(x.unflatten(-1, (self.ratio, -1))).flatten(-2)
        else:
            low = self.u(x)
        inner = [self.dropout(F.linear(low, core)) for core in cores]
        # [..., m, r]: V acts on each part of r channels, so qkv and fc1 get 3 and m results of D channels each.
        parts = [part.unflatten(-1, (-1, rank)) for part in inner]
        return self.v(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)).flatten(-2)

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the projections."""
        names = []
        for block in select_blocks(backbone, self.settings):
            names += [backbone.name_of(module) for module in (*block.qkv, *block.outputs)]
        return names

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return W + s V T U of each projection."""
        tensors = {}
        factor = self.settings.scale * self.strength
        u, v = upcast(self.u.weight), upcast(self.v.weight)
        for index, block in enumerate(select_blocks(backbone, self.settings)):
            cores = {name: upcast(core) for name, core in self.cores(index).items()}
            square = {name: v @ cores[name] @ u for name in ("q", "k", "v", "proj")}
            rank = len(u)
            # Row blocks of fc1 write its m parts, column blocks of fc2 read them; see `_high` for the same in the pass.
            fc1 = torch.cat([v @ core @ u for core in cores["fc1"].split(rank)])
            fc2 = torch.cat([v @ core @ u for core in cores["fc2"].split(rank, dim=1)], dim=1)
            qkv = [square[name] for name in ("q", "k", "v")]
            added = list(zip(block.outputs, (square["proj"], fc1, fc2), strict=True))
            added += [(block.qkv[0], torch.cat(qkv))] if len(block.qkv) == 1 else list(zip(block.qkv, qkv, strict=True))
            for module, delta in added:
                weight = get_tensor(module, "weight")
                assert weight is not None
                tensors[backbone.key(module, "weight")] = upcast(weight) + factor * delta
        return tensors


# FacT in tensor-train form: U and V common to all blocks, cores of each block's own.
#
# Jie and Deng 2023, arXiv 2212.03145, section 3.2. ViT-B/16: 1,536 r + 144 r^2 parameters. Starts as the identity: V 0.
# Merges: W += s V T U.


class FactTtSettings(FactSettings):
    """Rank, scale and dropout."""

    method: Literal["fact_tt"] = "fact_tt"


class FactTtAdapter(FactAdapter[FactTtSettings]):
    """Six linear maps per block."""

    def build_cores(self, rank: int, blocks: int) -> None:
        """Create one linear layer for each core, with PyTorch's own initial values."""
        wide = self.ratio * rank

        def core() -> nn.ModuleDict:
            square = {name: nn.Linear(rank, rank, bias=False) for name in ("q", "k", "v", "proj")}
            fc1, fc2 = nn.Linear(rank, wide, bias=False), nn.Linear(wide, rank, bias=False)
            return nn.ModuleDict({**square, "fc1": fc1, "fc2": fc2})

        self.blocks = nn.ModuleList(core() for _ in range(blocks))

    def cores(self, index: int) -> dict[str, Tensor]:
        """Return the weights of the block's linear layers, already oriented as `F.linear` expects them."""
        block = self.blocks[index]
        assert isinstance(block, nn.ModuleDict)
        return {name: linear.weight for name, linear in block.items()}  # pyrefly: ignore[bad-return]


FACT_TT = Method(
    FactTtSettings,
    FactTtAdapter,
    paper="arXiv 2212.03145",
    location="beside qkv, proj, fc1, fc2",
    mergeable=True,
    needs=("blocks", "projections", "square", "proj", "mlps", "one_width"),
)


# FacT in Tucker form: U, V and one core tensor C (r x r x r) common to all, a column of P for each r x r core.
#
# Jie and Deng 2023, arXiv 2212.03145, section 3.3. The cores of a block are the slices of C x_3 P. ViT-B/16:
# 1,536 r + 144 r + r^3 parameters. Starts as the identity: V 0; C and P Xavier. Merges: W += s V T U.
#
# The released code flattens the m slices of fc1 and of fc2 from (r, r, m) to (r, m r) row by row, so the m matrices
# that act are interleaved columns rather than slices; kept here, because published numbers and weights come from it.


class FactTkSettings(FactSettings):
    """Rank, scale and dropout."""

    method: Literal["fact_tk"] = "fact_tk"


class FactTkAdapter(FactAdapter[FactTkSettings]):
    """One core tensor, one matrix of factors."""

    def build_cores(self, rank: int, blocks: int) -> None:
        """Create C [r, r, r] and P [r, (4 + 2 m) blocks]."""
        # Matrices of a block: q, k, v, proj, and m parts each of fc1 and fc2. With m = 4 the 12 of the paper.
        self.per_block = 4 + 2 * self.ratio
        self.c = nn.Parameter(torch.empty(rank, rank, rank))
        self.p = nn.Parameter(torch.empty(rank, self.per_block * blocks))
        nn.init.xavier_uniform_(self.c)
        nn.init.xavier_uniform_(self.p)

    def cores(self, index: int) -> dict[str, Tensor]:
        """Return slices 0 to 3 of C x_3 P as q, k, v, proj (transposed), the next m as fc1, the last m as fc2."""
        # [r, r, r] x [r, 4 + 2 m]: the product over the last axis of C is C x_3 P.
        core = self.c @ self.p[:, index * self.per_block : (index + 1) * self.per_block]
        rank, m = len(core), self.ratio
        # Transposed: the released code multiplies row vectors, x S; `F.linear` expects the weight S^T.
        square = {name: core[:, :, number].T for number, name in enumerate(("q", "k", "v", "proj"))}
        fc1 = core[:, :, 4 : 4 + m].reshape(rank, m * rank).T
        return {**square, "fc1": fc1, "fc2": core[:, :, 4 + m :].reshape(rank, m * rank)}


FACT_TK = Method(
    FactTkSettings,
    FactTkAdapter,
    paper="arXiv 2212.03145",
    location="beside qkv, proj, fc1, fc2",
    mergeable=True,
    needs=("blocks", "projections", "square", "proj", "mlps", "one_width"),
)
