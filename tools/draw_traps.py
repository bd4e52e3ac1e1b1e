"""Draw a sheet of the generated camera-trap survey, or measure its shares and speed for the method's page.

python tools/draw_traps.py docs/images/traps.webp
python tools/draw_traps.py --measure
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.traps import TrapImage, TrapSettings, draw_trap_image

COLUMNS, NUM_IMAGES, NUM_MEASURED, SEED = 6, 600, 1000, 1
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


def measure() -> None:
    """Print shares of training images of two seeds as rows of a table, and images drawn and encoded a CPU second."""
    settings = TrapSettings()
    drawn: list[TrapImage] = []
    for seed in (0, 1):
        drawn += [draw_trap_image(settings, seed=seed, split="train", index=index) for index in range(NUM_MEASURED)]
    animals = [each for each in drawn if each.boxes]
    sides = [max(box.width * settings.width, box.height * settings.height) for each in animals for box in each.boxes]
    bursts: dict[object, list[bool]] = defaultdict(list)
    for position, each in enumerate(drawn):
        bursts[position // NUM_MEASURED, each.frame.event.id].append(bool(each.boxes))
    with_animal = [seen for seen in bursts.values() if any(seen)]
    rows = {
        "images without an animal": np.mean([not each.boxes for each in drawn]),
        "infra-red images": np.mean([each.night for each in drawn]),
        "images in fog": np.mean([each.foggy for each in drawn]),
        "bursts with an animal that miss it in some image": np.mean([not all(seen) for seen in with_animal]),
        "images with an animal: several": np.mean([len(each.boxes) > 1 for each in animals]),
        "images with an animal: blurred by motion": np.mean([each.blurred for each in animals]),
        "images with an animal: more than a tenth of it hidden": np.mean([each.visible[0] < 0.9 for each in animals]),
    }
    for name, share in rows.items():
        print(f"| {name} | {100 * share:.0f} % |")
    low, middle, high = np.quantile(sides, (0.05, 0.5, 0.95))
    print(f"| longer side of a box, median (5 to 95 %) | {middle:.0f} ({low:.0f} to {high:.0f}) pixels |")
    # Again, now that landscapes are drawn and emoji are decoded.
    start = time.process_time()
    for index in range(NUM_MEASURED):
        jpeg(draw_trap_image(settings, seed=1, split="train", index=index).image)
    print(f"{NUM_MEASURED / (time.process_time() - start):.0f} images a CPU second")


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["--measure"] else main(Path(sys.argv[1]))
