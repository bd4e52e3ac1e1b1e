"""Draw the README's picture: sample photographs with a phrase and the box that `foveate locate` gives for it.

`python tools/draw_locate.py docs/images/locate.webp`
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import foveate
from foveate.core.files import write_bytes_atomically
from foveate.records.samples import photographs

# Chosen among the samples because the boxes are right; docs/methods/bridge.md counts how often they are.
PHRASES = {"rocket": "a rocket", "coffee": "a cup of coffee"}
HEIGHT, TEXT_HEIGHT, GAP = 400, 64, 24
BOX, GROUND, INK = (255, 106, 31), (251, 250, 248), (27, 28, 31)


def draw_tile(image: Image.Image, phrase: str, box: foveate.Box) -> Image.Image:
    """Draw the phrase above the image, and the box in it."""
    width = image.width * HEIGHT // image.height
    tile = Image.new("RGB", (width, HEIGHT + TEXT_HEIGHT), GROUND)
    tile.paste(image.resize((width, HEIGHT), Image.Resampling.LANCZOS), (0, TEXT_HEIGHT))
    draw = ImageDraw.Draw(tile)
    draw.text((0, 10), f"“{phrase}”", font=ImageFont.load_default(36), fill=INK)
    x1, y1, x2, y2 = box.to_array().tolist()
    edges = (x1 * width, TEXT_HEIGHT + y1 * HEIGHT, x2 * width, TEXT_HEIGHT + y2 * HEIGHT)
    draw.rectangle(edges, outline=(52, 40, 34), width=8)
    draw.rectangle([edges[0] + 2, edges[1] + 2, edges[2] - 2, edges[3] - 2], outline=BOX, width=4)
    return tile


def main(path: Path) -> None:
    """Locate the phrases and write the picture."""
    model, images, tiles = foveate.open_model(), photographs(), []
    for name, phrase in PHRASES.items():
        box = model.locate(images[name], phrase).box
        assert box is not None, phrase
        tiles.append(draw_tile(images[name], phrase, box))
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    picture, left = Image.new("RGB", (width, tiles[0].height), GROUND), 0
    for tile in tiles:
        picture.paste(tile, (left, 0))
        left += tile.width + GAP
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85)
    write_bytes_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
