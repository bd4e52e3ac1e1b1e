"""Strategy `freeva`: four frames, concatenated, with pairs of neighbors pooled, or averaged over time.

Source: FreeVA (arXiv 2405.07798); its code has the three operators and concatenates.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveate.video.layout import Layout
from foveate.video.strategies import MAX_FRAMES, Strategy, pooled_layout


class FreeVa(Strategy):
    """Settings of FreeVA."""

    frames: int = Field(4, ge=1, le=MAX_FRAMES, description="frames to sample from the clip")
    pool: Literal["concat", "spatial_1d_max_pool", "temporal_global_pool"] = Field(
        "concat", description="operator of the frames"
    )

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the rows of the frames; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, self.pool)


STRATEGY = FreeVa
