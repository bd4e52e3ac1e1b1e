"""Put video tokens into a prompt: the text piece by piece, and the room that the language model has.

What does not fit is refused, never cut: the official code cuts the end, and that is the question.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.llama_forward import PlacedPrompt
from foveate.language.tokenizer import encode_pieces, list_start_ids
from foveate.video.adapter import VideoPlaces
from foveate.video.layout import NativeLayout
from foveate.video.networks import Network
from foveate.video.prompts import VideoPrompt
from foveate.video.strategies import Strategy

# Fewer slow frames than these `--fit` does not leave.
_MIN_SLOW = 4


class PromptIds(NamedTuple):
    """Token ids in front of the video and behind it."""

    before: list[int]
    after: list[int]


def encode_prompt(network: Network, prompt: VideoPrompt) -> PromptIds:
    """Encode the text around a video.

    Each side is encoded by itself, and the first begins as the tokenizer begins a sequence, as in the official code.

    Raises:
        UserError: the model has no tokenizer.
    """
    if network.tokenizer is None:
        raise UserError(f"{network.name}: has no tokenizer; expected tokenizer.json in the folder")
    backend = network.tokenizer.backend
    # Ours begins with the marks of its chat template.
    start = () if network.frame.leads else list_start_ids(backend)
    return PromptIds([*start, *encode_pieces(backend, prompt.before)], encode_pieces(backend, prompt.after))


def splice(
    network: Network, ids: PromptIds, video_LD: Tensor, places: VideoPlaces | None = None
) -> Tensor | PlacedPrompt:
    """Return the embeddings [before + L + after, D] of a prompt with its video, and its positions where it has own.

    Rows of a video may be wider than embeddings (see `families`); texts are filled with zeros.
    """
    # A float32 projector may feed a bfloat16 decoder.
    dtype = network.language.get_input_embeddings().weight.dtype
    video_LD = video_LD.to(dtype)
    before_LD, after_LD = (
        F.pad(text_LD, (0, video_LD.shape[1] - text_LD.shape[1])) for text_LD in map(network.embed, ids)
    )
    rows_LD = torch.cat([before_LD, video_LD, after_LD])
    device, start = rows_LD.device, network.first + len(ids.before)
    if places is None:
        end = network.first + len(rows_LD)
        return PlacedPrompt(rows_LD, torch.arange(network.first, end, device=device), end) if network.first else rows_LD
    follow = start + places.follow
    texts = [
        torch.arange(low, low + len(text), device=device).expand(3, -1)
        for low, text in ((network.first, ids.before), (follow, ids.after))
    ]
    positions_3L = torch.cat([texts[0], places.positions_3L.to(device) + start, texts[1]], dim=1)
    return PlacedPrompt(rows_LD, positions_3L, follow + len(ids.after))


class ContextFullError(UserError):
    """A video with its question does not fit the context of the language model."""


class Room(NamedTuple):
    """What there is room for.

    Attributes:
        frames: sampled frames of the clip. image_tokens: of a frame before pooling.
        text: tokens of the prompt, and those that an answer may have. limit: of the language model.
    """

    frames: int
    image_tokens: int
    text: int
    limit: int | None

    def count(self, how: Strategy) -> int:
        """Count the video tokens of a strategy."""
        return how.layout(min(self.frames, how.frames), self.image_tokens).num_tokens

    def holds(self, how: Strategy) -> bool:
        """Return whether the video of a strategy fits with the text."""
        return self.limit is None or self.count(how) + self.text <= self.limit


def check_room(how: Strategy, room: Room) -> None:
    """Raise ContextFullError where a video does not fit, with the largest settings that would."""
    if room.holds(how):
        return
    fitting = [*list_fitting(how, room), *(["--fit"] if room.holds(_shrink(how, room)) else [])]
    advice = f"{' or '.join(fitting)} would fit" if fitting else "expected another strategy or model"
    raise ContextFullError(
        f"context: {room.count(how):,} tokens of video and {room.text:,} of text and answer do not fit in "
        f"{room.limit:,}; {advice}"
    )


def check_native(layout: NativeLayout, text: int, limit: int | None) -> None:
    """Raise ContextFullError where a model's own video input does not fit."""
    if limit is not None and layout.num_tokens + text > limit:
        raise ContextFullError(
            f"context: {layout.num_tokens:,} tokens of video and {text:,} of text and answer do not fit in {limit:,}; "
            "expected fewer --frames"
        )


def list_fitting(how: Strategy, room: Room) -> list[str]:
    """List the largest settings with which a video would fit, each alone, as options: "--slow 8"."""
    return [
        f"--{name} {_write_value(value)}"
        # Advice may go below the four slow frames that `--fit` keeps: whoever follows it chooses to.
        for name, values in _list_shrinks(how, room, min_slow=1)
        if (value := _find_largest(how, name, values, room)) is not None
    ]


def fit_strategy(how: Strategy, room: Room) -> tuple[Strategy, tuple[str, ...]]:
    """Shrink a strategy until its video fits: the fast grid, then the frames, then slow frames down to four.

    Returns:
        The strategy, and each change as "fast 4x4 -> 2x3".

    Raises:
        ContextFullError: the smallest does not fit either.
    """
    fitted = _shrink(how, room)
    check_room(fitted, room)
    changes = ((name, getattr(how, name), getattr(fitted, name)) for name in ("fast", "frames", "sampled", "slow")
               if hasattr(how, name))  # fmt: skip
    return fitted, tuple(
        f"{name} {_write_value(old)} -> {_write_value(new)}" for name, old, new in changes if old != new
    )


def _shrink(how: Strategy, room: Room) -> Strategy:
    """Return the largest strategy that fits, or the smallest where none does."""
    for name, values in _list_shrinks(how, room, min_slow=_MIN_SLOW):
        if room.holds(how) or not values:
            continue
        value = _find_largest(how, name, values, room)
        # Where no value of a field suffices, its smallest one stays and the next field is given up, too.
        shrunk = how.model_copy(update={name: values[-1] if value is None else value})
        # What changes nothing, as the number of frames where slow ones alone are read, stays.
        if room.count(shrunk) < room.count(how):
            how = shrunk
    return how


def _list_shrinks(how: Strategy, room: Room, *, min_slow: int) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield fields of a strategy with smaller and smaller values, in the order in which they are given up."""
    slow = getattr(how, "slow", 0)
    if fast := getattr(how, "fast", None):
        yield "fast", _shrink_grid(fast)
    if sampled := getattr(how, "sampled", 0):
        yield "sampled", range(sampled - 1, 0, -1)
    # Frames stop at the number of slow ones: fewer would make slow frames repeat, which costs tokens and shows nothing
    # new.
    yield "frames", range(min(how.frames, room.frames) - 1, max(slow, 1) - 1, -1)
    if slow:
        yield "slow", range(slow - 1, min_slow - 1, -1)


def _shrink_grid(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """List smaller grids, the longer side first and columns of a square, which keep its shape."""
    grids, (rows, columns) = [], grid
    while rows * columns > 1:
        rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
        grids.append((rows, columns))
    return grids


def _find_largest(how: Strategy, name: str, values: Sequence[Any], room: Room) -> Any:
    """Return the first of smaller and smaller values with which a strategy fits, None where none does."""
    # `holds` turns from False to True along smaller values; a binary search lays out the video a few times rather than
    # once a value.
    index = bisect_left(values, True, key=lambda value: room.holds(how.model_copy(update={name: value})))
    return values[index] if index < len(values) else None


def _write_value(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
