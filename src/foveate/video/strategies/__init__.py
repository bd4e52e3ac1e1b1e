"""Strategies: which tokens of which frames a language model reads. A kind is a module that defines STRATEGY."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from foveate.core.errors import UserError
from foveate.core.plugins import load_plugin, module_names
from foveate.core.recipes import Settings, validate
from foveate.video.layout import Block, Layout, Operator, Pool, Reduction, grid_side, operator_pool
from foveate.vision.tiling import Grid, parse_grid
from foveate.vision.video.choosing import ChoiceRule
from foveate.vision.video.collages import TowerImage, frame_images
from foveate.vision.video.sampling import slow_positions

MAX_FRAMES = 100_000
MAX_SIDE = 1024
_STRIDES = {"1x1": "concat", "1x2": "spatial_1d_max_pool", "2x2": "spatial_2d_max_pool"}


def _parse_operator(value: Any) -> Any:
    """Turn a stride "1x2" (rows x columns) into the operator that has it; the rest is left to pydantic."""
    # For a mistyped stride the error lists the strides; for other texts pydantic lists the operators.
    if isinstance(value, str) and value[:1].isdigit() and value not in _STRIDES:
        raise ValueError(f"unknown stride; expected one of {', '.join(_STRIDES)}, or an operator such as concat")
    return _STRIDES.get(value, value) if isinstance(value, str) else value


def _parse_optional_grid(value: Any) -> Any:
    """Turn "4x4" into a grid and "none" into None."""
    return None if value == "none" else parse_grid(value)


SlowPool = Annotated[Operator, BeforeValidator(_parse_operator)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
FastGrid = Annotated[tuple[Side, Side], BeforeValidator(parse_grid)]
OptionalGrid = Annotated[tuple[Side, Side] | None, BeforeValidator(_parse_optional_grid)]


class Strategy(Settings, ABC):
    """Settings of a strategy, and its layout."""

    frames: int = Field(50, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")

    @property
    def kind(self) -> str:
        """Name of the strategy."""
        return type(self).__module__.rpartition(".")[2]

    def layout(self, num_frames: int, image_tokens: int, *, slow_indices: Sequence[int] | None = None) -> Layout:
        """Lay out the tokens of a clip.

        Args:
            num_frames: T, sampled frames of the clip; fewer than `frames` in a short one.
            image_tokens: N, projected tokens of an image.
            slow_indices: of the slow frames, in the order of their rows; evenly spread without.

        Raises:
            UserError: the tokens are no grid that the strategy can pool, an index is outside the clip, or the strategy
                has no slow frames.
        """
        if num_frames < 1 or image_tokens < 1:
            raise UserError(f"frames: {num_frames} of {image_tokens} tokens each; expected at least 1 of each")
        layout = self._arrange(num_frames, image_tokens, self.pick_slow(num_frames, slow_indices))
        if not layout.num_tokens:
            raise UserError("slow_indices: empty, and the strategy reads no other frames; expected at least one")
        return layout

    @abstractmethod
    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the tokens of a clip with these slow frames; see `layout`."""

    def pick_slow(self, num_frames: int, slow_indices: Sequence[int] | None) -> tuple[int, ...]:
        """Return the indices of the slow frames; raise UserError where the strategy cannot use them."""
        if slow_indices is not None:
            raise UserError(f"slow_indices: no effect with strategy '{self.kind}', which has no slow frames")
        return ()

    def count_tokens(self, num_frames: int, image_tokens: int) -> dict[str, int]:
        """Count the tokens of each path of a clip; see `layout`."""
        return self.layout(num_frames, image_tokens).count_tokens()


class SlowStrategy(Strategy):
    """A strategy with slow frames, which keep most of their tokens."""

    slow: int = Field(10, ge=0, le=MAX_FRAMES, description="slow frames: those that keep their detail; 0: none")
    slow_pool: SlowPool = Field(
        "spatial_1d_max_pool", description="operator of slow frames, or a stride: 1x1, 1x2, 2x2"
    )
    choose: ChoiceRule = Field("even", description="how slow frames are chosen: evenly, or by what their images show")

    def pick_slow(self, num_frames: int, slow_indices: Sequence[int] | None) -> tuple[int, ...]:
        """Return the given indices, or evenly spread ones; raise UserError for one outside the clip."""
        if slow_indices is None:
            # Chosen frames never repeat: a plan, which does not know them, counts as many.
            return slow_positions(num_frames, self.slow if self.choose == "even" else min(self.slow, num_frames))
        outside = [index for index in slow_indices if not 0 <= index < num_frames]
        if outside:
            raise UserError(f"slow_indices: outside the clip (got {outside[0]}); expected 0 to {num_frames - 1}")
        return tuple(slow_indices)

    def slow_block(self, images: Sequence[TowerImage], frames: Sequence[int]) -> Block:
        """Lay out the rows of slow frames."""
        pool, bins = operator_pool(self.slow_pool)
        return frames_block("slow", images, frames, pool, bins)

    def slow_warnings(self, slow: Sequence[int], image_tokens: int) -> list[str]:
        """List what is unusual about these slow frames."""
        texts = []
        if len(set(slow)) < len(slow):
            texts.append(f"slow: {len(slow)} slow frames of {len(set(slow))}; frames repeat")
        if slow and self.slow_pool.startswith("spatial_1d") and image_tokens % 2:
            texts.append(
                f"slow_pool: on an odd grid ({image_tokens} tokens) pairs cross the ends of rows and the last token is "
                "dropped, as in the official code; 'grid_1x2' pairs within rows"
            )
        return texts


def grid_pool(grid: tuple[int, int], reduction: Reduction) -> Pool:
    """Return the pool of the fast path."""
    return Pool("adaptive", reduction, Grid(*grid))


def fast_warnings(grid: tuple[int, int] | None, image_tokens: int) -> list[str]:
    """List what is unusual about a fast grid on images of this size."""
    side = grid_side(image_tokens) if grid else 0
    if grid and max(grid) > side:
        return [f"fast: {grid[0]}x{grid[1]} is larger than the grid of {side} x {side} tokens, which repeat"]
    return []


def frames_block(path: str, images: Sequence[TowerImage], frames: Sequence[int], pool: Pool, bins: int = 0) -> Block:
    """Lay out the rows of frames that are among `images`, in this order."""
    # Keyed by all frames of an image, so that a collage of several is never taken for one of them.
    positions = {image.frames: position for position, image in enumerate(images)}
    return Block(path, tuple(positions[frame,] for frame in frames), pool, bins)


def pooled_layout(num_frames: int, image_tokens: int, operator: Operator) -> Layout:
    """Lay out one operator on all frames."""
    images = frame_images(range(num_frames))
    pool, bins = operator_pool(operator)
    block = frames_block("frames", images, range(num_frames), pool, bins)
    return Layout(image_tokens, images, (block,))


def strategy_kinds() -> list[str]:
    """List the kinds of strategies."""
    return module_names(__name__)


def build_strategy(kind: str, options: Mapping[str, Any], *, where: str = "how") -> Strategy:
    """Build a strategy from its options.

    Args:
        where: the option that names it, for errors.

    Raises:
        UserError: unknown kind or option, or a wrong value.
    """
    return validate(load_plugin(__name__, kind, "STRATEGY", label="strategy"), dict(options), where=where)
