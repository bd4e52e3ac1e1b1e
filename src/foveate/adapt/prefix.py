"""The part in front of the first change is frozen: compute it once per image, then start every pass from there.

It works on any backbone: the pass that computes is stopped in front of a block by a hook; the pass that continues runs
the network on an empty image with the blocks in front disabled, and inserts the cached tokens in front of the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import hook_input
from foveate.adapt.backbone import Backbone
from foveate.adapt.model import AdaptedModel


class _Stop(Exception):
    """Carries the input of a block out of a pass."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def frozen_extent(first_block: int, backbone: Backbone) -> tuple[str, int]:
    """Return what is frozen if `first_block` is the first that changes; see `FrozenPrefix`."""
    block = min(first_block, len(backbone.blocks) - 1)
    # `len(blocks)` is a change of the final norm: its input is the last block's output, and is computed again.
    if first_block > len(backbone.blocks):
        return "features", block
    # Blocks of a map of tokens change its size: what would be passed through is not what the next block takes.
    if block >= 1 and backbone.tokens != "map":
        return "block", block
    return "nothing" if backbone.stem is None else "stem", block


class FrozenPrefix:
    """Frozen first part of an adapted model, which is computed once per image.

    Attributes:
        kind: "features" (the head alone is trained), "block", "stem" (a part that is never trained), or "nothing".
        block: number of the first block that is computed every time, for "block".
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted = adapted
        self.kind, self.block = frozen_extent(adapted.adapter().first_block(adapted.backbone), adapted.backbone)

    def describe(self) -> str:
        """Describe in a few words what is cached."""
        descriptions = {
            "features": "features, once",
            "block": f"tokens in front of block {self.block}, once",
            "stem": "features of the frozen network, once",
            "nothing": "nothing: the method changes the network from its first layer on",
        }
        return descriptions[self.kind]

    @torch.no_grad()
    def compute(self, pixels: Tensor) -> Tensor:
        """Map pixels, as the backbone takes them, to what is cached of them."""
        backbone, training = self.adapted.backbone, self.adapted.training
        # In evaluation mode: DropPath in a frozen part would be drawn once for all epochs.
        self.adapted.eval()
        try:
            if self.kind == "features":
                return backbone.features(pixels)
            if self.kind == "stem":
                assert backbone.stem is not None
                return backbone.stem(pixels)
            return self._run_until_block(pixels)
        finally:
            self.adapted.train(training)

    def _run_until_block(self, pixels: Tensor) -> Tensor:
        # An exception ends the pass at once: the blocks behind it need not be computed.
        def stop(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            raise _Stop(inputs[0] if inputs else keywords["hidden_states"])

        block = self.adapted.backbone.blocks[self.block].module
        # In front of the adapter's own hooks: prompts must not be part of what is cached.
        hook = block.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            self.adapted.backbone.features(pixels)
        except _Stop as stopped:
            return stopped.tokens
        finally:
            hook.remove()
        raise AssertionError("the block was not called")

    def logits(self, cached: Tensor) -> Tensor:
        """Map what `compute` returned to logits: as `adapted(pixels)`, without dropout in the frozen part."""
        adapted = self.adapted
        if self.kind == "features":
            return adapted.head(cached)
        if self.kind == "stem":
            return adapted.head(adapted.backbone.features(cached))
        backbone = adapted.backbone
        # The pass needs an input of the right shape to get to the block; its values are never looked at.
        if backbone.stem is None:
            rows, columns = backbone.grid
            side = backbone.patch_size
            empty = cached.new_zeros(len(cached), backbone.channels, rows * side, columns * side)
        else:
            encoder: Any = getattr(backbone.model, "image_encoder", backbone.model)
            shape: tuple[int, ...] = encoder.feature_shape
            empty = cached.new_zeros(len(cached), *shape)
        with self._skip_blocks(cached):
            return adapted.head(backbone.features(empty))

    @contextlib.contextmanager
    def _skip_blocks(self, cached: Tensor) -> Iterator[None]:
        """Inside the block, disable the blocks of the prefix and insert the cached tokens behind them."""
        blocks = self.adapted.backbone.blocks
        skipped = [block.module for block in blocks[: self.block]]
        for module in skipped:
            # On the instance: the class and its other blocks keep their forward, and removing the attribute restores
            # it.
            module.forward = _pass_through  # pyrefly: ignore[bad-assignment]
        first = blocks[self.block].module
        hook = hook_input(first, lambda _: cached)
        # In front of the hook that appends prompts, if there is one: hooks run in the order of registration.
        _move_to_front(first, hook)
        try:
            yield
        finally:
            hook.remove()  # pyrefly: ignore[missing-attribute]
            for module in skipped:
                vars(module).pop("forward", None)


def _pass_through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _move_to_front(module: nn.Module, hook: Any) -> None:
    # `prepend=True` would do the same at registration; `hook_input` serves methods, which must not need it.
    hooks: Any = module._forward_pre_hooks
    hooks.move_to_end(hook.id, last=False)
