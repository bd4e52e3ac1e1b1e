"""FacT in tensor-train form: U and V common to all blocks, cores of each block's own.

Jie and Deng 2023, arXiv 2212.03145, section 3.2. ViT-B/16: 1,536 r + 144 r^2 parameters. Starts as the identity: V 0.
Merges: W += s V T U.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from foveate.adapt.adapter import Method
from foveate.adapt.fact import FactAdapter, FactSettings


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


METHOD = Method(
    FactTtSettings,
    FactTtAdapter,
    paper="arXiv 2212.03145",
    location="beside qkv, proj, fc1, fc2",
    mergeable=True,
    needs=("blocks", "projections", "square", "proj", "mlps", "one_width"),
)
