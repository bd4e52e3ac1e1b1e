"""Strategy `slow`: slow frames alone, the ablation of SlowFast-LLaVA without a fast path."""

from __future__ import annotations

from pydantic import Field

from foveate.video.layout import Layout
from foveate.video.strategies import MAX_FRAMES, SlowStrategy
from foveate.vision.video.collages import frame_images


class Slow(SlowStrategy):
    """Settings of slow frames alone; 12 frames of 12 x 24 tokens are the paper's."""

    slow: int = Field(12, ge=1, le=MAX_FRAMES, description="slow frames, the only ones that are read")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of slow frames; see `Strategy.layout`."""
        images = frame_images(slow)
        warnings = tuple(self.slow_warnings(slow, image_tokens))
        return Layout(image_tokens, images, (self.slow_block(images, slow),), warnings)


STRATEGY = Slow
