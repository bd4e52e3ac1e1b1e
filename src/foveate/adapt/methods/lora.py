"""LoRA on the query, key and value projections: a low-rank matrix added to the frozen one.

Hu et al. 2022, arXiv 2106.09685, section 4. [q; k; v] += scale B A dropout(z) with z = norm1(x), one A (r x d) that the
three share and one B (3 d x r). ViT-B/16: 36,864 r parameters. Starts as the identity: A Kaiming uniform, B 0.
Merges: W_qkv += scale B A. The scale is 1 as in the study (arXiv 2409.16434); "alpha/r" is PEFT's convention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from foveate.adapt.adapter import (
    BlockAdapter,
    BranchSettings,
    Handle,
    Method,
    PassState,
    check_rank,
    hook_output,
    init_kaiming,
    init_zero,
    select_blocks,
)
from foveate.adapt.backbone import Backbone, get_tensor
from foveate.adapt.parameter_swap import upcast


class LoraSettings(BranchSettings):
    """Rank, scale and dropout."""

    method: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="r, of the added matrix")
    scale: Literal["one", "alpha/r"] = Field("one", description="factor of the branch: 1 (the study), or alpha / rank")
    alpha: float | None = Field(None, gt=0, description="of scale alpha/r; the rank by default")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the branch's input, in training")

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        if self.alpha is not None and self.scale == "one":
            raise ValueError("alpha has no effect with scale one; set scale to alpha/r")
        return self

    @property
    def factor(self) -> float:
        """Factor of the branch: 1, or alpha / rank. Alpha is the rank by default, so then it is 1 too."""
        return 1.0 if self.scale == "one" or self.alpha is None else self.alpha / self.rank


class Pair(nn.Module):
    """The matrices A [r, D] and B [3 D, r] of one block."""

    def __init__(self, width: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.a = nn.Linear(width, rank, bias=False)
        self.b = nn.Linear(rank, 3 * width, bias=False)
        self.dropout = nn.Dropout(dropout)
        init_kaiming(self.a)
        init_zero(self.b)
        self._state = PassState()

    def part(self, z_BLD: Tensor, number: int, *, of: int) -> Tensor:
        """Return rows `number` of B A z out of `of` equal parts: [B, L, 3 D / of].

        Args:
            z_BLD: input of the projection, the block's normed tokens.
            number: 0 to of - 1, in the order q, k, v.
            of: 1 for a fused qkv projection, 3 for separate ones.
        """
        if of == 1:
            return self.b(self.a(self.dropout(z_BLD)))
        # q, k and v of transformers are three modules with one input: A z is computed once for all, whatever order they
        # are called in. A part that comes a second time is a new pass, whose dropout has to be drawn anew.
        state: tuple[Tensor, Tensor, set[int]] | None = self._state.value
        if state is None or state[0] is not z_BLD or number in state[2]:
            state = self._state.value = (z_BLD, self.a(self.dropout(z_BLD)), set())
        _, low, served = state
        served.add(number)
        if len(served) == of:
            self._state.value = None  # frees the graph of this pass
        # Only this projection's rows of B: the product with all 3 D rows would be computed three times.
        return F.linear(low, self.b.weight.chunk(of)[number])


class LoraAdapter(BlockAdapter[LoraSettings]):
    """One pair of matrices per block."""

    def __init__(self, settings: LoraSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        blocks = select_blocks(backbone, settings)
        rank = check_rank(settings.rank, backbone.width)
        self.blocks = nn.ModuleDict(
            {str(block.number): Pair(backbone.width, rank, settings.dropout) for block in blocks}
        )

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each projection."""
        for block in select_blocks(backbone, self.settings):
            for number, module in enumerate(block.qkv):
                yield hook_output(module, self._branch(self.pair(block.number), number, len(block.qkv)))

    def pair(self, number: int) -> Pair:
        """Return the matrices A and B of the block with this number."""
        pair = self.blocks[str(number)]
        assert isinstance(pair, Pair)
        return pair

    def _branch(self, pair: Pair, number: int, of: int):  # noqa: ANN202
        def change(output: Tensor, z_BLD: Tensor | None) -> Tensor:
            assert z_BLD is not None
            factor = self.settings.factor * self.strength
            added = pair.part(z_BLD, number, of=of)
            # Without a multiplication by 1: an update is as fast as PEFT's only without it.
            return output + (added if factor == 1 else added * factor)

        return change

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the projections."""
        blocks = select_blocks(backbone, self.settings)
        return [backbone.name_of(module) for block in blocks for module in block.qkv]

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return W + s B A of each projection, in float32 at least."""
        tensors = {}
        for block in select_blocks(backbone, self.settings):
            pair = self.pair(block.number)
            delta = upcast(pair.b.weight) @ upcast(pair.a.weight) * (self.settings.factor * self.strength)
            # B's rows are in the order q, k, v, as in a fused projection, so that chunks fit separate ones too.
            for module, rows in zip(block.qkv, delta.chunk(len(block.qkv)), strict=True):
                weight = get_tensor(module, "weight")
                assert weight is not None
                tensors[backbone.key(module, "weight")] = upcast(weight) + rows
        return tensors


METHOD = Method(
    LoraSettings, LoraAdapter, paper="arXiv 2106.09685", location="beside q, k, v", mergeable=True, peft="LORA"
)
