"""Strategy `ts`: tokens sampled evenly from all tokens of all frames, then one thumbnail of a few frames.

Source: TS-LLaVA (arXiv 2411.11066), aggregation V2 of its code: 2,880 tokens of 50 frames and 6 frames in 576.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from foveate.video.layout import Block, Layout, Pool
from foveate.video.strategies import Strategy
from foveate.vision.tiling import Grid
from foveate.vision.video.collages import TowerImage, frame_images
from foveate.vision.video.sampling import float_linspace


class ThumbnailSampling(Strategy):
    """Settings of TS-LLaVA."""

    sampled: int = Field(2880, ge=1, le=1_000_000, description="tokens to sample from those of all frames")
    thumbnail: int = Field(6, ge=1, le=144, description="frames in the thumbnail")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the sampled tokens, then those of the thumbnail; see `Strategy.layout`."""
        total = num_frames * image_tokens
        warnings = []
        if self.sampled > total:
            warnings.append(f"sampled: {self.sampled} of {total} tokens; all are read")
        # Rounded, as in TS-LLaVA's code, whereas the official slow frames are truncated.
        tokens = np.rint(float_linspace(total - 1, min(self.sampled, total))).astype(int)
        frames, counts = np.unique(tokens // image_tokens, return_counts=True)
        shares = np.split(tokens % image_tokens, np.cumsum(counts)[:-1])
        images = [*frame_images(frames.tolist()), self._thumbnail(num_frames)]
        blocks = [
            Block("sampled", (image,), Pool("select", indices=tuple(share.tolist())))
            for image, share in enumerate(shares)
        ]
        blocks.append(Block("thumbnail", (len(images) - 1,)))
        return Layout(image_tokens, tuple(images), tuple(blocks), tuple(warnings))

    def _thumbnail(self, num_frames: int) -> TowerImage:
        """Lay out the thumbnail: the most square grid without an empty cell, taller than wide."""
        frames = np.rint(float_linspace(num_frames - 1, self.thumbnail)).astype(int)
        columns = max(side for side in range(1, int(self.thumbnail**0.5) + 1) if self.thumbnail % side == 0)
        return TowerImage(tuple(frames.tolist()), Grid(self.thumbnail // columns, columns))


STRATEGY = ThumbnailSampling
