"""Methods that scale channels: SSF behind every linear operation, DiffFit behind each sublayer."""

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
    ParameterSwap,
    bias_names,
    hook_output,
    norm_names,
    upcast,
)
from foveate.adapt.backbone import Backbone, get_tensor
from foveate.core.errors import UserError

# SSF: scale and shift per channel behind every linear operation.
#
# Lian et al. 2022, arXiv 2210.08823, section 3.2: y = s h + t behind the patch convolution, both norms, qkv, proj, fc1
# (before the activation), fc2 and the final norm. ViT-B/16: 205,824 parameters. Does not start as the identity:
# s ~ N(1, 0.02), t ~ N(0, 0.02). Merges: W <- diag(s) W, b <- s b + t. A patch convolution without bias hands its shift
# to the position embedding of the patches, which is added right behind it.


class SsfSettings(MethodSettings):
    """No options."""

    method: Literal["ssf"] = "ssf"


class SsfAdapter(Adapter[SsfSettings]):
    """A scale and a shift for each operation, in the order of `_operations`."""

    interpolation: ClassVar[Literal["branch", "weights", "merged", ""]] = "merged"

    def __init__(self, settings: SsfSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        operations = _operations(backbone)
        # The published start: near the identity, not on it.
        self.scales = nn.ParameterDict({name: 1 + 0.02 * torch.randn(size) for name, (_, size) in operations.items()})
        self.shifts = nn.ParameterDict({name: 0.02 * torch.randn(size) for name, (_, size) in operations.items()})

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each operation."""
        for name, (module, _) in _operations(backbone).items():
            yield hook_output(module, _affine(self.scales[name], self.shifts[name], channels_first=name == "patch"))

    def first_block(self, backbone: Backbone) -> int:
        """Return 0: the patch convolution comes before all blocks."""
        return 0

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the operations."""
        return [backbone.name_of(module) for module, _ in _operations(backbone).values()]

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return scaled weights, and scaled and shifted biases, in float32 at least.

        Raises:
            UserError: an operation has no bias that could take the shift.
        """
        tensors: dict[str, Tensor] = {}
        for name, (module, _) in _operations(backbone).items():
            scale, shift = upcast(self.scales[name]), upcast(self.shifts[name])
            weight, bias = get_tensor(module, "weight"), get_tensor(module, "bias")
            assert weight is not None
            # The first axis of a weight is the output channel, of linear layers, convolutions and norms alike.
            tensors[backbone.key(module, "weight")] = scale.view(-1, *[1] * (weight.dim() - 1)) * upcast(weight)
            if bias is not None:
                tensors[backbone.key(module, "bias")] = scale * upcast(bias) + shift
            elif name == "patch" and backbone.positions is not None:
                # Positions are added right behind the patch convolution, so they can take its shift.
                # From `first` on, the entries of patches: a class token never passed the convolution and gets no shift.
                tensor, axis, first = backbone.positions
                moved = upcast(backbone.model.get_parameter(tensor)).clone()
                moved.narrow(axis, first, moved.shape[axis] - first).add_(shift)
                tensors[tensor] = moved
            else:
                raise UserError(
                    f"ssf cannot be merged here: {backbone.name_of(module)} has no bias that could take the shift"
                )
        return tensors


def _operations(backbone: Backbone) -> dict[str, tuple[nn.Module, int]]:
    """Return module and number of channels of each operation, by the name under which its pair is saved."""
    operations: dict[str, tuple[nn.Module, int]] = {}
    if backbone.patch is not None:
        operations["patch"] = (backbone.patch, _channels(backbone.patch))
    for block in backbone.require_blocks("ssf"):
        norm1, norm2 = block.norms
        proj, fc1, fc2 = block.outputs
        # Fused: one pair of 3 D channels; separate: three pairs of D channels. The number of parameters is the same.
        names = ("qkv",) if len(block.qkv) == 1 else ("q", "k", "v")
        inner = {
            "norm1": norm1,
            **dict(zip(names, block.qkv, strict=True)),
            "proj": proj,
            "norm2": norm2,
            "fc1": fc1,
            "fc2": fc2,
        }
        operations |= {f"block{block.number}_{name}": (module, _channels(module)) for name, module in inner.items()}
    if backbone.final_norm is not None:
        operations["norm"] = (backbone.final_norm, _channels(backbone.final_norm))
    return operations


def _channels(module: nn.Module) -> int:
    weight = get_tensor(module, "weight")
    assert weight is not None
    return weight.shape[0]


def _affine(scale: Tensor, shift: Tensor, *, channels_first: bool):  # noqa: ANN202
    def change(output: Tensor, _: Tensor | None) -> Tensor:
        # A convolution returns [B, D, rows, columns]; everything else has its channels last.
        shape = (-1, 1, 1) if channels_first and output.dim() == 4 else (-1,)
        return output * scale.to(output.dtype).view(shape) + shift.to(output.dtype).view(shape)

    return change


SSF = Method(
    SsfSettings,
    SsfAdapter,
    paper="arXiv 2210.08823",
    location="behind every linear operation",
    mergeable=True,
    needs=("blocks", "norms", "projections", "proj", "mlps"),
)


# DiffFit: BitFit, all norms, and a learned scale per channel on what each sublayer adds.
#
# Xie et al. 2023, arXiv 2304.06648, section 3. ViT-B/16: 140,544 parameters. Starts as the identity (scales 1).
# Merges: the rows of the last projection of each sublayer, weight and bias, times the scale.


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


DIFFFIT = Method(
    DifffitSettings,
    DifffitAdapter,
    paper="arXiv 2304.06648",
    location="every bias, every norm, and a scale behind each sublayer",
    mergeable=True,
    needs=("blocks", "norms", "norms_in_front", "attention_end", "mlp_end", "proj", "mlps"),
)
