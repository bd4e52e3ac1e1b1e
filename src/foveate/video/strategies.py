"""Strategies: which tokens of which frames a language model reads. A kind is a class in the table STRATEGIES."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from foveate.core.errors import UserError, choose, nearest
from foveate.core.recipes import Settings, validate
from foveate.video.layout import OPERATORS, Layout, Operator, Reduction, RowBlock, TokenPool, grid_side, operator_pool
from foveate.vision.tiling import Grid, parse_grid
from foveate.vision.video.collages import TowerImage, frame_images
from foveate.vision.video.sampling import ChoiceRule, float_linspace, slow_positions

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
        return next(name for name, kind in STRATEGIES.items() if kind is type(self))

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

    def slow_block(self, images: Sequence[TowerImage], frames: Sequence[int]) -> RowBlock:
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


def grid_pool(grid: tuple[int, int], reduction: Reduction) -> TokenPool:
    """Return the pool of the fast path."""
    return TokenPool("adaptive", reduction, Grid(*grid))


def fast_warnings(grid: tuple[int, int] | None, image_tokens: int) -> list[str]:
    """List what is unusual about a fast grid on images of this size."""
    side = grid_side(image_tokens) if grid else 0
    if grid and max(grid) > side:
        return [f"fast: {grid[0]}x{grid[1]} is larger than the grid of {side} x {side} tokens, which repeat"]
    return []


def frames_block(
    path: str, images: Sequence[TowerImage], frames: Sequence[int], pool: TokenPool, bins: int = 0
) -> RowBlock:
    """Lay out the rows of frames that are among `images`, in this order."""
    # Keyed by all frames of an image, so that a collage of several is never taken for one of them.
    positions = {image.frames: position for position, image in enumerate(images)}
    return RowBlock(path, tuple(positions[frame,] for frame in frames), pool, bins)


def pooled_layout(num_frames: int, image_tokens: int, operator: Operator) -> Layout:
    """Lay out one operator on all frames."""
    images = frame_images(range(num_frames))
    pool, bins = operator_pool(operator)
    block = frames_block("frames", images, range(num_frames), pool, bins)
    return Layout(image_tokens, images, (block,))


# Strategy `slowfast`: slow frames with their detail, then all frames on a coarse grid.
#
# Source: SlowFast-LLaVA (arXiv 2407.15841), section 3.


class SlowFast(SlowStrategy):
    """Settings of SlowFast-LLaVA; the defaults are the paper's.

    >>> SlowFast().count_tokens(50, 24 * 24)
    {'slow': 2880, 'fast': 800}
    >>> SlowFast(slow=4, slow_pool="2x2", fast="2x2").count_tokens(32, 64)
    {'slow': 64, 'fast': 128}
    """

    fast: OptionalGrid = Field((4, 4), description="grid of the fast path, rows x columns; none: no fast path")
    fast_pool: Reduction = Field("avg", description="operator of the fast path")

    @model_validator(mode="after")
    def _check(self) -> SlowFast:
        if not self.slow and self.fast is None:
            raise ValueError("slow: no slow frames and no fast path; expected one of them")
        return self

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out all slow rows, then all fast rows; see `Strategy.layout`."""
        fast = range(num_frames) if self.fast else ()
        images = frame_images([*slow, *fast])
        blocks = [self.slow_block(images, slow)]
        if self.fast:
            blocks.append(frames_block("fast", images, fast, grid_pool(self.fast, self.fast_pool)))
        warnings = self.slow_warnings(slow, image_tokens) + fast_warnings(self.fast, image_tokens)
        return Layout(image_tokens, images, tuple(blocks), tuple(warnings))


# Strategy `slow`: slow frames alone, the ablation of SlowFast-LLaVA without a fast path.


class Slow(SlowStrategy):
    """Settings of slow frames alone; 12 frames of 12 x 24 tokens are the paper's."""

    slow: int = Field(12, ge=1, le=MAX_FRAMES, description="slow frames, the only ones that are read")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of slow frames; see `Strategy.layout`."""
        images = frame_images(slow)
        warnings = tuple(self.slow_warnings(slow, image_tokens))
        return Layout(image_tokens, images, (self.slow_block(images, slow),), warnings)


# Strategy `fast`: all frames on a coarse grid, the ablation of SlowFast-LLaVA without slow frames.


class Fast(Strategy):
    """Settings of the fast path alone; 200 frames of 4 x 4 tokens are the paper's at 3,200 tokens."""

    frames: int = Field(200, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")
    fast: FastGrid = Field((4, 4), description="grid of each frame, rows x columns")
    fast_pool: Reduction = Field("avg", description="operator of the grid")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of the frames; see `Strategy.layout`."""
        images = frame_images(range(num_frames))
        block = frames_block("fast", images, range(num_frames), grid_pool(self.fast, self.fast_pool))
        return Layout(image_tokens, images, (block,), tuple(fast_warnings(self.fast, image_tokens)))


# Strategy `chosen`: a few frames that differ most, with all their tokens.
#
# Like KTV (arXiv 2602.03615), which clusters features of frames: here they are chosen farthest-first, and no token is
# thinned out.


class Chosen(Slow):
    """Settings of chosen frames; six of 576 tokens fill a context of 4,096 beside a prompt."""

    slow: int = Field(6, ge=1, le=MAX_FRAMES, description="frames to choose")
    slow_pool: SlowPool = Field("concat", description="operator of the frames, or a stride: 1x1, 1x2, 2x2")
    choose: ChoiceRule = Field("cover", description="how frames are chosen: evenly, or by what their images show")


# Strategy `interleaved`: all frames in the order of time, slow ones with their detail, others on the coarse grid.
#
# Source: the order of LLaVA-Video (arXiv 2410.02713), which is trained for it; its learned separators are left out.


class Interleaved(SlowStrategy):
    """Settings of interleaved frames; a frame is either slow or fast, and never repeats."""

    fast: FastGrid = Field((4, 4), description="grid of the frames between, rows x columns")
    fast_pool: Reduction = Field("avg", description="operator of the grid")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows frame by frame; see `Strategy.layout`."""
        if operator_pool(self.slow_pool)[1]:
            raise UserError(
                f"slow_pool: '{self.slow_pool}' pools over time; strategy 'interleaved' keeps frames in order"
            )
        images = frame_images(range(num_frames))
        coarse = grid_pool(self.fast, self.fast_pool)
        blocks = tuple(
            self.slow_block(images, [frame]) if frame in slow else frames_block("fast", images, [frame], coarse)
            for frame in range(num_frames)
        )
        # Slow frames do not repeat here, so that too few frames need no warning.
        odd = self.slow_warnings(sorted(set(slow)), image_tokens)
        return Layout(image_tokens, images, blocks, (*odd, *fast_warnings(self.fast, image_tokens)))


# Strategy `concat`: all tokens of a few frames, one after the other; with `pool`, the official plain operators.


class Concat(Strategy):
    """Settings of concatenated frames.

    Six frames of 576 tokens are what a context of 4,096 holds beside a prompt: seven would leave 64 tokens.
    """

    frames: int = Field(6, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")
    pool: SlowPool = Field("concat", description="operator of the frames, or a stride: 1x1, 1x2, 2x2")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of the frames; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, self.pool)


# Strategy `mean`: the mean of all frames, token by token: what was where, without when.


class Mean(Strategy):
    """Settings of the mean over time."""

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the N rows of the mean; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, "temporal_global_pool")


# Strategy `freeva`: four frames, concatenated, with pairs of neighbors pooled, or averaged over time.
#
# Source: FreeVA (arXiv 2405.07798); its code has the three operators and concatenates.


class FreeVa(Strategy):
    """Settings of FreeVA."""

    frames: int = Field(4, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")
    pool: Literal["concat", "spatial_1d_max_pool", "temporal_global_pool"] = Field(
        "concat", description="operator of the frames"
    )

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of the frames; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, self.pool)


# Strategy `grid`: one image into which frames are pasted, row by row, encoded whole or in tiles.
#
# Source: IG-VLM (arXiv 2403.18406): six frames in three rows of two. It tiles the image as its model does any other;
# here tiles are a setting, and no newline tokens stand between them.


class ImageGrid(Strategy):
    """Settings of a grid of frames in one image."""

    frames: int = Field(6, ge=1, le=144, description="frames to sample from the clip")
    tiles: FastGrid = Field((1, 1), description="tiles of the image, rows x columns")
    overview: bool = Field(True, description="encode the whole image too, before its tiles")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the tokens of the image, then of its tiles row by row; see `Strategy.layout`."""
        frames = tuple(range(num_frames))
        # At least as many rows as columns: six frames are three rows of two, as in IG-VLM.
        columns = round(num_frames**0.5)
        cells = Grid(-(-num_frames // columns), columns)
        rows, columns = self.tiles
        images = [TowerImage(frames, cells)] if self.overview or rows * columns == 1 else []
        if rows * columns > 1:
            tiles = [Grid(row, column) for row in range(rows) for column in range(columns)]
            images += [TowerImage(frames, cells, tile, Grid(rows, columns)) for tile in tiles]
        return Layout(image_tokens, tuple(images), (RowBlock("grid", tuple(range(len(images)))),))


# Strategy `ts`: tokens sampled evenly from all tokens of all frames, then one thumbnail of a few frames.
#
# Source: TS-LLaVA (arXiv 2411.11066), aggregation V2 of its code: 2,880 tokens of 50 frames and 6 frames in 576.


class ThumbnailSampling(Strategy):
    """Settings of TS-LLaVA."""

    sampled: int = Field(2880, ge=1, le=1_000_000, description="tokens to sample from those of all frames")
    thumbnail: int = Field(6, ge=1, le=144, description="frames in the thumbnail")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the sampled tokens, then those of the thumbnail; see `Strategy.layout`."""
        total = num_frames * image_tokens
        warnings = []
        if self.sampled > total:
            warnings.append(f"sampled: {self.sampled} of {total} tokens; all are read")
        # Rounded, as in TS-LLaVA's code, whereas the official slow frames are truncated.
        tokens = np.rint(float_linspace(total - 1, min(self.sampled, total))).astype(int)
        frames, counts = np.unique(tokens // image_tokens, return_counts=True)
        shares = np.split(tokens % image_tokens, np.cumsum(counts)[:-1])
        images = [*frame_images(frames.tolist()), self._thumbnail(num_frames)]
        blocks = [
            RowBlock("sampled", (image,), TokenPool("select", indices=tuple(share.tolist())))
            for image, share in enumerate(shares)
        ]
        blocks.append(RowBlock("thumbnail", (len(images) - 1,)))
        return Layout(image_tokens, tuple(images), tuple(blocks), tuple(warnings))

    def _thumbnail(self, num_frames: int) -> TowerImage:
        """Lay out the thumbnail: the most square grid without an empty cell, taller than wide."""
        frames = np.rint(float_linspace(num_frames - 1, self.thumbnail)).astype(int)
        columns = max(side for side in range(1, int(self.thumbnail**0.5) + 1) if self.thumbnail % side == 0)
        return TowerImage(tuple(frames.tolist()), Grid(self.thumbnail // columns, columns))


# Strategy `native`: the model's own video input, with the frames that are sampled here.


class Native(Strategy):
    """Settings of the model's own video input; the processor decides how many tokens its frames have."""

    frames: int = Field(16, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Refuse: the tokens are known when the processor has written them."""
        raise UserError(
            "how: 'native' leaves the tokens to the model's processor; they cannot be planned or aggregated"
        )


STRATEGIES: Mapping[str, type[Strategy]] = {
    "slowfast": SlowFast,
    "slow": Slow,
    "fast": Fast,
    "chosen": Chosen,
    "interleaved": Interleaved,
    "concat": Concat,
    "mean": Mean,
    "freeva": FreeVa,
    "grid": ImageGrid,
    "ts": ThumbnailSampling,
    "native": Native,
}


def strategy_kinds() -> list[str]:
    """List the kinds of strategies."""
    return sorted(STRATEGIES)


def build_strategy(kind: str, options: Mapping[str, Any], *, where: str = "how") -> Strategy:
    """Build a strategy from its options.

    Args:
        where: the option that names it, for errors.

    Raises:
        UserError: unknown kind or option, or a wrong value.
    """
    return validate(STRATEGIES[choose(kind, strategy_kinds(), "strategy")], dict(options), where=where)


# Texts of strategies: the paper's strings, official operators and names of strategies, to settings and back.
#
# slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4
# spatial_1d_avg_pool
# interleaved


EXAMPLE = "slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4"
# Lengths are bounded, for Python refuses to read integers of thousands of digits.
_STRICT = re.compile(r"slowfast-slow_([1-9]\d{0,9})frms_(\w+)-fast_([1-9]\d{0,9})x([1-9]\d{0,9})", re.ASCII)
# The official pattern: digits of any script, zeros, and a newline before the end.
_COMPATIBLE = re.compile(r"slowfast-slow_(\d{1,99})frms_(\w+)-fast_(\d{1,99})x(\d{1,99})\n?")
# Without aggregation the official code reads the first frame alone, without a word.
_NO_AGGREGATION = ("", "none", "false")


def parse_how(text: str, *, compat: bool = False, **options: Any) -> Strategy:
    """Turn the name of a strategy, the paper's string or an official operator into settings.

    Args:
        text: such as "interleaved", "slowfast-slow_10frms_spatial_1d_max_pool-fast_4x4" or "spatial_1d_avg_pool".
        compat: see `parse_aggregation`.
        options: fields of the strategy, which replace those of the text.

    Raises:
        UserError: neither of the three, or a wrong option; with the valid form and the nearest match.

    >>> parse_how("slowfast-slow_8frms_concat-fast_2x4").count_tokens(50, 576)
    {'slow': 4608, 'fast': 400}
    >>> parse_how("fast", fast="2x2").count_tokens(10, 64)
    {'fast': 40}
    """
    if text not in strategy_kinds():
        how = parse_aggregation(text, compat=compat)
        text, options = how.kind, how.model_dump(exclude_unset=True) | options
    return build_strategy(text, options)


def parse_aggregation(text: str, *, compat: bool = False) -> Strategy:
    """Turn the paper's string, or an official operator for all frames, into settings.

    Args:
        compat: also accept what the official pattern does: no slow frames, an empty fast grid, leading zeros, digits of
            other scripts, a newline at the end.

    Raises:
        UserError: the text is no such string; with the valid form and the nearest match.
    """
    match = (_COMPATIBLE if compat else _STRICT).fullmatch(text)
    if match is not None and match[2] in OPERATORS:
        slow, rows, columns = (int(match[group]) for group in (1, 3, 4))
        # In an official string an empty grid, accepted with `compat`, means that there is no fast path.
        fast = (rows, columns) if rows * columns else None
        return build_strategy("slowfast", {"slow": slow, "slow_pool": match[2], "fast": fast})
    if text == "temporal_global_pool":
        return build_strategy("mean", {})
    if text in OPERATORS:
        return build_strategy("concat", {"pool": text})
    raise UserError(_explain(text, match))


def format_aggregation(how: Strategy) -> str:
    """Write settings as the paper's string, which `parse_aggregation(text, compat=True)` reads back.

    Which frames are sampled and chosen is not in it: it says how they are pooled.

    Raises:
        UserError: the strategy or an option of it cannot be written so.

    >>> format_aggregation(parse_how("slowfast", slow=8, fast="2x4"))
    'slowfast-slow_8frms_spatial_1d_max_pool-fast_2x4'
    """
    options = how.model_dump()
    if how.kind == "slowfast":
        rows, columns = options["fast"] or (0, 0)
        text = f"slowfast-slow_{options['slow']}frms_{options['slow_pool']}-fast_{rows}x{columns}"
    elif how.kind in ("concat", "mean"):
        text = options.get("pool", "temporal_global_pool")
    else:
        raise UserError(f"how: strategy '{how.kind}' has no string in the paper; expected slowfast, concat or mean")
    # Parsed again, so that an option that the string cannot express is refused instead of lost.
    same = parse_aggregation(text, compat=True).model_dump()
    for name, value in options.items():
        if name not in ("frames", "choose") and same.get(name) != value:
            raise UserError(f"{name}: no place in '{text}' (got {value}); expected {same.get(name)}")
    return text


def _explain(text: str, match: re.Match[str] | None) -> str:
    """Say what is wrong with a text."""
    if text.strip().lower() in _NO_AGGREGATION:
        return f"how: no aggregation (got '{text}'); expected 'concat' with frames=1 for one frame, or a strategy"
    if match is not None:
        expected = f"expected one of {', '.join(OPERATORS)}{nearest(match[2], OPERATORS)}"
        return f"how '{text:.100}': unknown operator '{match[2]:.60}'; {expected}"
    # The two mistakes that are made most: the underscore of the official file names, and a capital letter.
    likely = re.sub(r"_fast_", "-fast_", text.strip().lower())
    if _STRICT.fullmatch(likely):
        hint = f". Did you mean '{likely}'?"
    elif (compatible := _COMPATIBLE.fullmatch(text)) and not all(int(compatible[group]) for group in (1, 3, 4)):
        hint = "; for no slow frames pass slow=0 (--slow 0), for no fast path fast=None (--fast none)"
    else:
        hint = nearest(text, [*strategy_kinds(), *OPERATORS, EXAMPLE])
    return f"how: not a strategy (got '{text:.100}'); expected {EXAMPLE} or one of {', '.join(strategy_kinds())}{hint}"
