"""Draw a sheet of generated clips: a row for each world, with boxes of what happens.

python tools/draw_clips.py docs/images/clips.webp
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from foveate_labs.worlds.scenes.clips import WORLDS, SceneClip, draw_clip

SIDE, COLUMNS, INDEX = 128, 8, 32
COLOR = "#edae49"


def choose_frames(clip: SceneClip) -> list[int]:
    """Return evenly spaced frames, but where something appears, disappears or flashes the nearest one gives way."""
    step = len(clip) // COLUMNS
    frames = list(range(step // 2, len(clip), step))
    for event in clip.events:
        if event.kind in ("appear", "disappear", "flash"):
            frames[min(range(COLUMNS), key=lambda column: abs(frames[column] - event.start))] = event.start
    return frames


def draw_frame(clip: SceneClip, index: int) -> Image.Image:
    """Draw a frame with its number, and the boxes of things of which an event is going on."""
    frame = clip.frame(index)
    image = Image.fromarray(frame.pixels_HW3)
    pen = ImageDraw.Draw(image)
    for event in clip.events:
        box = frame.box(event.track)
        if event.kind not in ("move", "cut") or clip.world == "direction":
            if box and event.start <= index < event.stop:
                pen.rectangle((box.x1, box.y1, box.x2 - 1, box.y2 - 1), outline=COLOR)
    label = str(index)
    pen.rectangle((0, SIDE - 13, 4 + pen.textlength(label), SIDE), fill="black")
    pen.text((2, SIDE - 13), label, fill="white")
    return image


def main(path: Path) -> None:
    """Write the sheet to `path`."""
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 2), len(WORLDS) * (SIDE + 2)), "white")
    for row, world in enumerate(WORLDS):
        clip = draw_clip(world, seed=2, split="train", index=INDEX, size=SIDE)
        for column, index in enumerate(choose_frames(clip)):
            sheet.paste(draw_frame(clip, index), (column * (SIDE + 2), row * (SIDE + 2)))
    sheet.save(path, quality=80, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
