"""Images that a vision tower encodes of sampled frames: frames, and collages of several or tiles of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from foveate.vision.preprocess import Preprocess, squash
from foveate.vision.tiling import Grid


class TowerImage(NamedTuple):
    """An image that the vision tower encodes: a frame, or a collage of frames or a tile of one.

    Attributes:
        frames: indices of the sampled frames, row by row.
        cells: rows and columns of the collage.
        tile: row and column of the tile. tiles: rows and columns of tiles into which the collage is cut.
    """

    frames: tuple[int, ...]
    cells: Grid = Grid(1, 1)
    tile: Grid = Grid(0, 0)
    tiles: Grid = Grid(1, 1)

    @property
    def is_frame(self) -> bool:
        """Whether it is one whole frame."""
        return self.cells == self.tiles == (1, 1)


def frame_images(frames: Sequence[int]) -> tuple[TowerImage, ...]:
    """List single frames as images, each once and in the order of time."""
    return tuple(TowerImage((frame,)) for frame in sorted(set(frames)))


def assemble_images(
    images: Sequence[TowerImage], frames: Iterable[Image.Image], preprocess: Preprocess
) -> Iterator[Image.Image]:
    """Yield the images that a tower reads: frames, and collages of frames (empty cells are white) or tiles of one.

    Each comes as soon as its last frame has. Of frames in collages what was pasted is held, and nothing else.

    Args:
        frames: all that were sampled, in order.
    """
    complete: dict[int, list[int]] = {}
    collages: dict[int, dict[TowerImage, None]] = {}
    for position, image in enumerate(images):
        complete.setdefault(max(image.frames), []).append(position)
        for frame in () if image.is_frame else image.frames:
            # Tiles share one collage.
            collages.setdefault(frame, {})[image._replace(tile=Grid(0, 0))] = None
    canvases: dict[TowerImage, Image.Image] = {}
    ready: dict[int, Image.Image] = {}
    next_position = 0
    for number, frame in enumerate(frames):
        for collage in collages.get(number, ()):
            if collage not in canvases:
                size = (preprocess.width * collage.tiles.columns, preprocess.height * collage.tiles.rows)
                canvases[collage] = Image.new("RGB", size, "white")
            _paste(canvases[collage], collage, number, frame)
        for position in complete.get(number, ()):
            image = images[position]
            ready[position] = frame if image.is_frame else canvases[image._replace(tile=Grid(0, 0))]
        # An image may be complete before an earlier one, whose last frame is still to come: it waits for its turn.
        while next_position in ready:
            image, source = images[next_position], ready.pop(next_position)
            yield source if image.is_frame else _crop_tile(source, image.tile, preprocess)
            next_position += 1


def _paste(canvas: Image.Image, collage: TowerImage, number: int, frame: Image.Image) -> None:
    """Paste a frame into its cells of a collage."""
    rows, columns = collage.cells
    for cell, index in enumerate(collage.frames):
        if index == number:
            row, column = divmod(cell, columns)
            # Edges are rounded, not sizes, so that cells leave no gap when the canvas does not divide evenly.
            left, right = (canvas.width * each // columns for each in (column, column + 1))
            top, bottom = (canvas.height * each // rows for each in (row, row + 1))
            canvas.paste(squash(frame, (bottom - top, right - left)), (left, top))


def _crop_tile(canvas: Image.Image, tile: Grid, preprocess: Preprocess) -> Image.Image:
    top, left = tile.rows * preprocess.height, tile.columns * preprocess.width
    return canvas.crop((left, top, left + preprocess.width, top + preprocess.height))
