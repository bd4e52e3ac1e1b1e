"""DiffFit: BitFit, all norms, and a learned scale per channel on what each sublayer adds.

Xie et al. 2023, arXiv 2304.06648, section 3. ViT-B/16: 140,544 parameters. Starts as the identity (scales 1).
Merges: the rows of the last projection of each sublayer, weight and bias, times the scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import (
    Adapter,
    Handle,
    Method,
    MethodSettings,
    bias_names,
    hook_output,
    norm_names,
)
from foveate.adapt.backbone import Backbone, get_tensor
from foveate.adapt.parameter_swap import ParameterSwap, upcast


class DifffitSettings(MethodSettings):
    """No options."""

    method: Literal["difffit"] = "difffit"


class DifffitAdapter(Adapter[DifffitSettings]):
    """Tuned copies of biases and norms, and two scales [D] per block."""

    interpolation: ClassVar[Literal["branch", "weights", "merged", ""]] = "merged"

    def __init__(self, settings: DifffitSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        blocks = backbone.require_blocks("difffit")
        trained = {*bias_names(backbone), *norm_names(backbone)}
        # In the order of the tower, each name once: biases of norms are in both lists.
        names = tuple(name for name in backbone.tower_parameters() if name in trained)
        self.parameter_swap = ParameterSwap.copy_from(backbone.model, names)
        self.attention = nn.ParameterList(torch.ones(backbone.block_width(block)) for block in blocks)
        self.mlp = nn.ParameterList(torch.ones(backbone.block_width(block)) for block in blocks)

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook the end of each sublayer, in front of the residual addition."""
        for block, first, second in zip(backbone.blocks, self.attention, self.mlp, strict=True):
            attention_end, mlp_end = block.ends
            yield hook_output(attention_end.module, _times(first))
            yield hook_output(mlp_end.module, _times(second))

    def first_block(self, backbone: Backbone) -> int:
        """Return 0: the patch bias comes before all blocks."""
        return 0

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return diag(g) W and g b of proj and fc2, the last projection of each sublayer."""
        tensors: dict[str, Tensor] = {}
        for block, first, second in zip(backbone.blocks, self.attention, self.mlp, strict=True):
            proj, _, fc2 = block.outputs
            # The scale acts on what a sublayer adds, so it can only go into the last projection of each.
            for module, scale in ((proj, upcast(first)), (fc2, upcast(second))):
                weight, bias = get_tensor(module, "weight"), get_tensor(module, "bias")
                assert weight is not None
                tensors[backbone.key(module, "weight")] = scale[:, None] * upcast(weight)
                if bias is not None:
                    tensors[backbone.key(module, "bias")] = scale * upcast(bias)
        return tensors


def _times(scale: Tensor):  # noqa: ANN202
    return lambda output, _: output * scale.to(output.dtype)


METHOD = Method(
    DifffitSettings,
    DifffitAdapter,
    paper="arXiv 2304.06648",
    location="every bias, every norm, and a scale behind each sublayer",
    mergeable=True,
    needs=("blocks", "norms", "norms_in_front", "attention_end", "mlp_end", "proj", "mlps"),
)
