"""The part in front of the first change is frozen: computed once for each image, then the rest starts from there.

It works on any backbone: the pass that computes stops in front of a block by a hook; the pass that goes on runs the
network on an empty image whose blocks in front do nothing, and puts what was kept in front of the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foveate.adapt.adapter import on_input
from foveate.adapt.backbone import Backbone
from foveate.adapt.model import AdaptedModel


class _Stop(Exception):
    """Carries the input of a block out of a pass."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def place_of(first: int, view: Backbone) -> tuple[str, int]:
    """What need not be computed again when block `first` is the first that changes; see `Prefix`."""
    block = min(first, len(view.blocks) - 1)
    if first > len(view.blocks):
        return "features", block
    if block >= 1:
        return "block", block
    return "nothing" if view.stem is None else "stem", block


class Prefix:
    """What of an adapted model need not be computed again.

    Attributes:
        where: "features" (the head alone is trained), "block", "stem" (a part that is never trained), or "nothing".
        block: number of the first block that is computed, for "block".
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self.adapted = adapted
        self.where, self.block = place_of(adapted.adapter().first_block(adapted.view), adapted.view)

    def describe(self) -> str:
        """In words."""
        words = {
            "features": "features, once",
            "block": f"tokens in front of block {self.block}, once",
            "stem": "features of the frozen network, once",
            "nothing": "nothing: the method changes the network from its first layer on",
        }
        return words[self.where]

    @torch.no_grad()
    def compute(self, pixels: Tensor) -> Tensor:
        """Pixels, as the backbone takes them, to what is kept of them."""
        view, training = self.adapted.view, self.adapted.training
        self.adapted.eval()
        try:
            if self.where == "features":
                return view.features(pixels)
            if self.where == "stem":
                assert view.stem is not None
                return view.stem(pixels)
            return self._stopped(pixels)
        finally:
            self.adapted.train(training)

    def _stopped(self, pixels: Tensor) -> Tensor:
        def stop(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            raise _Stop(inputs[0] if inputs else named["hidden_states"])

        block = self.adapted.view.blocks[self.block].module
        hook = block.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
        try:
            self.adapted.view.features(pixels)
        except _Stop as stopped:
            return stopped.tokens
        finally:
            hook.remove()
        raise AssertionError("the block was not called")

    def logits(self, kept: Tensor) -> Tensor:
        """What `compute` gave to logits; as `adapted(pixels)`, but for DropPath and dropout in the frozen part."""
        adapted = self.adapted
        if self.where == "features":
            return adapted.head(kept)
        if self.where == "stem":
            return adapted.head(adapted.view.features(kept))
        view = adapted.view
        if view.stem is None:
            rows, columns = view.grid
            side = view.patch_size
            empty = kept.new_zeros(len(kept), view.channels, rows * side, columns * side)
        else:
            encoder: Any = getattr(view.model, "image_encoder", view.model)
            shape: tuple[int, ...] = encoder.feature_shape
            empty = kept.new_zeros(len(kept), *shape)
        with self._skipped(kept):
            return adapted.head(view.features(empty))

    @contextlib.contextmanager
    def _skipped(self, kept: Tensor) -> Iterator[None]:
        blocks = self.adapted.view.blocks
        skipped = [block.module for block in blocks[: self.block]]
        for module in skipped:
            module.forward = _through  # pyrefly: ignore[bad-assignment]
        # In front of the prompts, if there are any: hooks run in the order of registration.
        first = blocks[self.block].module
        hook = on_input(first, lambda _: kept)
        _to_front(first, hook)
        try:
            yield
        finally:
            hook.remove()  # pyrefly: ignore[missing-attribute]
            for module in skipped:
                vars(module).pop("forward", None)


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _to_front(module: nn.Module, hook: Any) -> None:
    hooks: Any = module._forward_pre_hooks
    hooks.move_to_end(hook.id, last=False)
