"""Named parts of the backbone: some blocks, their attention, their MLPs or norms, or names by a regular expression.

The common ways to tune "the last k blocks" or "attention only" (Touvron et al. 2022, arXiv 2203.09795, section 4).
Merges natively; what lies in front of the first tuned block is frozen and computed once.
"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from foveate.adapt.adapter import Method, MethodSettings, NativeAdapter, trainable_names
from foveate.adapt.backbone import Backbone
from foveate.core.errors import UserError


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


METHOD = Method(
    SubsetSettings, SubsetAdapter, paper="arXiv 2203.09795", location="the parts that are named", mergeable=True
)
