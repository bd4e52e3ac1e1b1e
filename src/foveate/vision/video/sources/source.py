"""The protocol of what a clip is read from, its frames, and its error.

Each source predicts the times of its frames without decoding, and decodes them in one pass.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image

from foveate.core.errors import UserError


class BadClip(UserError):
    """A clip that cannot be read; `reason` is a short code that is counted, the message one sentence.

    Attributes:
        num_decoded: how many of its frames can be decoded.
    """

    def __init__(self, reason: str, sentence: str, *, num_decoded: int = 0) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.num_decoded = num_decoded


class Frame(NamedTuple):
    """Seconds at which a frame begins, and its upright RGB pixels; None where nobody looks at it."""

    time: float
    image: Image.Image | None


@runtime_checkable
class Source(Protocol):
    """A clip before it is decoded.

    Attributes:
        name: for errors.
        damage: a sentence for each damaged part that the last pass met, with the number of the frame before it.
        header_frames: how many frames the header promises; 0 where it does not say.
        size: width and height of a frame by the header; (0, 0) where there is none, as of a list of images.
    """

    name: str
    damage: list[str]
    header_frames: int
    size: tuple[int, int]

    def predict_times(self) -> list[float]:
        """Return the seconds of each frame as the file's structure has them, without decoding."""
        ...

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        """Decode all frames in order; those of `indices` with pixels."""
        ...
