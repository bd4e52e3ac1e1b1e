"""Methods that train what the network has: all of it, none, biases, norms, or named parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from foveate.adapt.adapter import (
    Adapter,
    Handle,
    Method,
    MethodSettings,
    NativeAdapter,
    bias_names,
    norm_names,
    trainable_names,
)
from foveate.adapt.backbone import Backbone
from foveate.core.errors import UserError

# Full fine-tuning: every tensor of the vision tower and the head.
#
# The other baseline. A copy of the original tensors is stored, to disable the adapter and for WiSE; merges natively.


class FullSettings(MethodSettings):
    """No options."""

    method: Literal["full"] = "full"


class FullAdapter(NativeAdapter[FullSettings]):
    """Train every parameter of the tower that images pass."""

    def __init__(self, settings: FullSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, trainable_names(backbone))


FULL = Method(FullSettings, FullAdapter, paper="", location="everywhere", mergeable=True)


# Linear probing: only the new head is trained.
#
# The baseline of every study of adaptation; of the study (arXiv 2409.16434) section 3. Parameters without the head: 0.
# Merges trivially. Its features are computed once.


class LinearSettings(MethodSettings):
    """No options."""

    method: Literal["linear"] = "linear"


class LinearAdapter(Adapter[LinearSettings]):
    """No parameters: the head alone is trained."""

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Register nothing."""
        return iter(())

    def first_block(self, backbone: Backbone) -> int:
        """Return a number behind the final norm, so that the features are cached."""
        # `len(blocks)` would mean "the final norm changes", which recomputes that norm in every pass.
        return len(backbone.blocks) + 1


LINEAR = Method(LinearSettings, LinearAdapter, paper="", location="nowhere: the head alone", mergeable=True)


# BitFit: every bias is trained; those of norms, of qkv and of the patch convolution too.
#
# Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199, section 3. ViT-B/16: 102,912 parameters. Merges natively.
# Where a projection has no bias (CLIP's patch convolution) there is none to train, and none is added.


class BitfitSettings(MethodSettings):
    """No options."""

    method: Literal["bitfit"] = "bitfit"


class BitfitAdapter(NativeAdapter[BitfitSettings]):
    """Train every bias of the tower."""

    def __init__(self, settings: BitfitSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, bias_names(backbone))


BITFIT = Method(BitfitSettings, BitfitAdapter, paper="arXiv 2106.10199", location="every bias", mergeable=True)


# LayerNorm tuning: weight and bias of every norm layer.
#
# Frankle, Schwab and Morcos 2021, arXiv 2003.00152 (batch norms); of transformers the study (arXiv 2409.16434),
# appendix. ViT-B/16: 38,400 parameters. Merges natively. CLIP's norm in front of the blocks counts. Convolutional
# networks: their batch and group norms.


class LayernormSettings(MethodSettings):
    """No options."""

    method: Literal["layernorm"] = "layernorm"


class LayernormAdapter(NativeAdapter[LayernormSettings]):
    """Train weight and bias of every norm layer."""

    def __init__(self, settings: LayernormSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, norm_names(backbone))


LAYERNORM = Method(
    LayernormSettings,
    LayernormAdapter,
    paper="arXiv 2003.00152",
    location="every norm",
    mergeable=True,
    peft="LN_TUNING",
)


# Named parts of the backbone: some blocks, their attention, their MLPs or norms, or names by a regular expression.
#
# The common ways to tune "the last k blocks" or "attention only" (Touvron et al. 2022, arXiv 2203.09795, section 4).
# Merges natively; what lies in front of the first tuned block is frozen and computed once.


class SubsetSettings(MethodSettings):
    """Blocks and their parts, or a pattern over the names of tensors."""

    method: Literal["subset"] = "subset"
    blocks: list[int] | Literal["all"] = Field(
        "all", description="numbers of blocks from 0; negative ones from the end"
    )
    parts: list[Literal["attention", "mlp", "norms"]] = Field(
        ["attention", "mlp", "norms"], description="what of these blocks"
    )
    pattern: str | None = Field(None, description="instead: a regular expression that the whole name must match")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        # Not by what was set: a saved adapter names all fields.
        if self.pattern is not None and (self.blocks != "all" or len(self.parts) != 3):
            raise ValueError("give pattern, or blocks and parts")
        if not self.parts:
            raise ValueError("parts needs at least one of attention, mlp, norms")
        return self


class SubsetAdapter(NativeAdapter[SubsetSettings]):
    """Train the tensors that the settings select."""

    def __init__(self, settings: SubsetSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone, _names(settings, backbone))


def _names(settings: SubsetSettings, backbone: Backbone) -> list[str]:
    known = trainable_names(backbone)
    if settings.pattern is not None:
        try:
            matches = [name for name in known if re.fullmatch(settings.pattern, name)]
        except re.error as error:
            raise UserError(f"pattern '{settings.pattern}' is not a regular expression: {error}") from error
        if not matches:
            examples = ", ".join(known[:2])
            raise UserError(f"pattern '{settings.pattern}' matches no tensor of the backbone (such as {examples})")
        return matches
    blocks = backbone.require_blocks("subset")
    indices = list(range(len(blocks))) if settings.blocks == "all" else settings.blocks
    selected: set[int] = set()
    for number in indices:
        if not -len(blocks) <= number < len(blocks):
            raise UserError(f"blocks must lie in 0 to {len(blocks) - 1}, the blocks of this backbone (got {number})")
        block = blocks[number]
        norms = tuple(norm for norm in (block.norm1, block.norm2) if norm is not None)
        modules = {"attention": block.attention, "mlp": block.mlp, "norms": norms}
        for part in settings.parts:
            # By identity: the map knows a block's parts as modules, and their names differ from library to library.
            selected |= {id(value) for module in modules[part] for value in module.parameters()}
    parameters = backbone.tower_parameters()
    # In the order of the tower, whatever order the settings name blocks in, so that saved files agree.
    return [name for name in known if id(parameters[name]) in selected]


SUBSET = Method(
    SubsetSettings, SubsetAdapter, paper="arXiv 2203.09795", location="the parts that are named", mergeable=True
)
