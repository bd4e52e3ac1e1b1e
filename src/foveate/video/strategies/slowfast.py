"""Strategy `slowfast`: slow frames with their detail, then all frames on a coarse grid.

Source: SlowFast-LLaVA (arXiv 2407.15841), section 3.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from foveate.video.layout import Layout, Reduction
from foveate.video.strategies import OptionalGrid, SlowStrategy, fast_warnings, frames_block, grid_pool
from foveate.vision.video.collages import frame_images


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


STRATEGY = SlowFast
