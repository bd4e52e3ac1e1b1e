"""Strategy `grid`: one image into which frames are pasted, row by row, encoded whole or in tiles.

Source: IG-VLM (arXiv 2403.18406): six frames in three rows of two. It tiles the image as its model does any other;
here tiles are a setting, and no newline tokens stand between them.
"""

from __future__ import annotations

from pydantic import Field

from foveate.video.layout import Block, Layout
from foveate.video.strategies import FastGrid, Strategy
from foveate.vision.tiling import Grid
from foveate.vision.video.collages import TowerImage


class ImageGrid(Strategy):
    """Settings of a grid of frames in one image."""

    frames: int = Field(6, ge=1, le=144, description="frames to sample from the clip")
    tiles: FastGrid = Field((1, 1), description="tiles of the image, rows x columns")
    overview: bool = Field(True, description="encode the whole image too, before its tiles")

    def _arrange(self, num_frames: int, image_tokens: int, slow: tuple[int, ...]) -> Layout:
        """Lay out the tokens of the image, then of its tiles row by row; see `Strategy.layout`."""
        frames = tuple(range(num_frames))
        # At least as many rows as columns: six frames are three rows of two, as in IG-VLM.
        columns = round(num_frames**0.5)
        cells = Grid(-(-num_frames // columns), columns)
        rows, columns = self.tiles
        images = [TowerImage(frames, cells)] if self.overview or rows * columns == 1 else []
        if rows * columns > 1:
            tiles = [Grid(row, column) for row in range(rows) for column in range(columns)]
            images += [TowerImage(frames, cells, tile, Grid(rows, columns)) for tile in tiles]
        return Layout(image_tokens, tuple(images), (Block("grid", tuple(range(len(images)))),))


STRATEGY = ImageGrid
