"""Answers about a clip, and the frames that they saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class SeenFrame:
    """A frame that the answer saw: its index in the file, its time in seconds, and whether it is a slow one."""

    index: int
    time: float
    is_slow: bool
    image: Image.Image


@dataclass(frozen=True)
class VideoAnswer:
    """An answer about a video.

    Attributes:
        text: behind the start of an answer that the prompt has.
        num_prompt_tokens: positions that were read: text and video. tokens: generated ones.
        finished: False if it was cut at `max_tokens`.
        score: mean log-probability of the generated tokens.
        seen: record of what the model saw, ready for JSON.
        probabilities: of the letter of each option, where they were scored too.
        ids: generated tokens, without the one that ends the answer.
    """

    text: str
    num_prompt_tokens: int
    tokens: int
    finished: bool
    score: float
    seen: Mapping[str, Any]
    probabilities: tuple[float, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class VideoChoice:
    """A choice among options.

    Attributes:
        letter: of the likeliest option, "A" for the first. index: its number.
        probabilities: of each letter, among the letters.
        mass: probability that the model continues with one of the letters at all.
    """

    letter: str
    index: int
    probabilities: tuple[float, ...]
    mass: float
