"""Strategy `concat`: all tokens of a few frames, one after the other; with `pool`, the official plain operators."""

from __future__ import annotations

from pydantic import Field

from foveate.video.layout import Layout
from foveate.video.strategies import MAX_FRAMES, SlowPool, Strategy, pooled_layout


class Concat(Strategy):
    """Settings of concatenated frames.

    Six frames of 576 tokens are what a context of 4,096 holds beside a prompt: seven would leave 64 tokens.
    """

    frames: int = Field(6, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")
    pool: SlowPool = Field("concat", description="operator of the frames, or a stride: 1x1, 1x2, 2x2")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of the frames; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, self.pool)


STRATEGY = Concat
