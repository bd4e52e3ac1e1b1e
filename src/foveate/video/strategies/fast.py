"""Strategy `fast`: all frames on a coarse grid, the ablation of SlowFast-LLaVA without slow frames."""

from __future__ import annotations

from pydantic import Field

from foveate.video.layout import Layout, Reduction
from foveate.video.strategies import MAX_FRAMES, FastGrid, Strategy, fast_warnings, frames_block, grid_pool
from foveate.vision.video.collages import frame_images


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


STRATEGY = Fast
