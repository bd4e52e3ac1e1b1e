"""Strategy `mean`: the mean of all frames, token by token: what was where, without when."""

from __future__ import annotations

from foveate.video.layout import Layout
from foveate.video.strategies import Strategy, pooled_layout


class Mean(Strategy):
    """Settings of the mean over time."""

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the N rows of the mean; see `Strategy.layout`."""
        return pooled_layout(num_frames, image_tokens, "temporal_global_pool")


STRATEGY = Mean
