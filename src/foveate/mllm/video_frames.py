"""Frames of a video for a model of images: MM1.5 asks 24 of them, each one view, without a new module."""

from __future__ import annotations

from typing import Literal

from foveate.core.errors import UserError

FrameRule = Literal["linspace", "midpoint"]
NUM_FRAMES = 24


def frame_indices(length: int, *, num_frames: int = NUM_FRAMES, rule: FrameRule = "linspace") -> list[int]:
    """Choose the numbers of frames that are spread evenly over a video, in order.

    A video shorter than `num_frames` repeats frames. As a sample of three or more images is not split into tiles, each
    frame is one view: 24 frames of 144 tokens are 3,456 tokens.

    Args:
        length: frames of the video.
        rule: "linspace": from the first to the last frame, truncated; "midpoint": the middle of each of `num_frames`
            equal parts. The paper does not say which: linspace is our decision.

    Source: MM1.5 (arXiv 2409.20566), MM1.5-Video.

    Raises:
        UserError: a video without frames, or no frame to choose.

    >>> frame_indices(100, num_frames=4)
    [0, 33, 66, 99]
    >>> frame_indices(100, num_frames=4, rule="midpoint")
    [12, 37, 62, 87]
    """
    if length < 1 or num_frames < 1:
        raise UserError(f"video: {length} frames of which {num_frames} are to be chosen; expected at least 1 of each")
    # Integers: a quotient of floats may end just below a whole number and be truncated to the frame before.
    if rule == "midpoint":
        return [(2 * index + 1) * length // (2 * num_frames) for index in range(num_frames)]
    return [index * (length - 1) // max(1, num_frames - 1) for index in range(num_frames)]
