"""Draw a sheet of the generated camera-trap survey: day, dusk, infra-red night, fog, blur, occlusion, empty images.

python tools/draw_traps.py docs/images/traps.webp
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from foveate.records.traps import TrapImage, TrapSettings, draw_trap_image

COLUMNS, NUM_IMAGES, SEED = 6, 600, 1
COLOR = "#edae49"
ROWS: tuple[tuple[str, Callable[[TrapImage], bool]], ...] = (
    ("day", lambda drawn: bool(drawn.boxes) and not drawn.night and not drawn.foggy and not drawn.blurred),
    ("night", lambda drawn: bool(drawn.boxes) and drawn.night and not drawn.foggy and not drawn.blurred),
    ("fog", lambda drawn: bool(drawn.boxes) and drawn.foggy),
    ("motion blur", lambda drawn: drawn.blurred),
    ("partly hidden", lambda drawn: bool(drawn.boxes) and drawn.visible[0] < 0.7),
    ("several", lambda drawn: len(drawn.boxes) > 1),
    ("empty", lambda drawn: not drawn.boxes),
)


def main(path: Path) -> None:
    """Write the sheet to `path`: for each row the first images of different bursts that fit it."""
    settings = TrapSettings()
    width, height = settings.width, settings.height
    drawn = [draw_trap_image(settings, seed=SEED, split="train", index=index) for index in range(NUM_IMAGES)]
    sheet = Image.new("RGB", (COLUMNS * (width + 4), len(ROWS) * (height + 4)), "white")
    used: set[str] = set()
    for row, (_, fits) in enumerate(ROWS):
        column = 0
        for each in drawn:
            if column == COLUMNS or each.frame.event.id in used or not fits(each):
                continue
            used.add(each.frame.event.id)
            image = each.image.copy()
            pen = ImageDraw.Draw(image)
            for box in each.boxes:
                pixels = box.to_pixels(width, height)
                pen.rectangle((pixels.x1, pixels.y1, pixels.x2 - 1, pixels.y2 - 1), outline=COLOR)
            sheet.paste(image, (column * (width + 4), row * (height + 4)))
            column += 1
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(
        path, quality=80, method=6
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
