"""Strategy `interleaved`: all frames in the order of time, slow ones with their detail, others on the coarse grid.

Source: the order of LLaVA-Video (arXiv 2410.02713), which is trained for it; its learned separators are left out.
"""

from __future__ import annotations

from pydantic import Field

from foveate.core.errors import UserError
from foveate.video.layout import Layout, Reduction, operator_pool
from foveate.video.strategies import FastGrid, SlowStrategy, fast_warnings, frames_block, grid_pool
from foveate.vision.video.collages import frame_images


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


STRATEGY = Interleaved
