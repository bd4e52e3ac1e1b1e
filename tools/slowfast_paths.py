"""Draw what the two paths of SlowFast-LLaVA keep of a clip, with patches of pixels as tokens.

python tools/slowfast_paths.py docs/images/slowfast.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from foveate.video.aggregate import aggregate_frames
from foveate.video.strategies import SlowFast
from foveate_labs.worlds.scenes.clips import draw_clip

SIDE, PATCH, COLUMNS, GAP = 128, 8, 10, 4
GRID = SIDE // PATCH
INDEX, FIRST = 32, 20  # of a clip: ten frames with a flash in the fifth, between two slow ones
COLOR = "#d1495b"


def cut_patches(pixels_HW3: np.ndarray) -> Tensor:
    """Cut an image into tokens [N, D] of raw pixels, row by row."""
    patches = pixels_HW3.reshape(GRID, PATCH, GRID, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(patches.reshape(GRID * GRID, -1).astype(np.float32))


def join_patches(tokens_LD: Tensor, rows: int) -> Image.Image:
    """Join tokens of raw pixels to an image of so many rows of them: its area is their number."""
    patches = tokens_LD.reshape(rows, -1, PATCH, PATCH, 3).permute(0, 2, 1, 3, 4)
    return Image.fromarray(patches.flatten(0, 1).flatten(1, 2).round().to(torch.uint8).numpy())


def main(path: Path) -> None:
    """Draw the frames, and below each the tokens that the slow and the fast path have of it."""
    clip = draw_clip("busy", seed=2, split="train", index=INDEX, size=SIDE)
    frames = [clip.frame(FIRST + position).pixels_HW3 for position in range(COLUMNS)]
    how = SlowFast(slow=3, fast=(4, 4))
    layout = how.layout(COLUMNS, GRID * GRID)
    rows_LD = aggregate_frames(torch.stack([cut_patches(frame) for frame in frames]), how)
    slow_frames, num_slow = layout.blocks[0].images, layout.count_tokens()["slow"]
    slow, fast = rows_LD[:num_slow].chunk(len(slow_frames)), rows_LD[num_slow:].chunk(COLUMNS)

    label = 70
    sheet = Image.new("RGB", (label + COLUMNS * (SIDE + GAP), 2 * SIDE + PATCH * 4 + 4 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    tops = (GAP, SIDE + 2 * GAP, 2 * SIDE + 3 * GAP)
    texts = (f"{COLUMNS} frames", f"slow path\n{num_slow} tokens", f"fast path\n{len(rows_LD) - num_slow} tokens")
    for top, text in zip(tops, texts, strict=True):
        pen.text((2, top), text, fill="black")
    for position, frame in enumerate(frames):
        left = label + position * (SIDE + GAP)
        sheet.paste(Image.fromarray(frame), (left, tops[0]))
        sheet.paste(join_patches(fast[position], 4), (left, tops[2]))
        if position in slow_frames:
            pen.rectangle((left - 2, tops[0] - 2, left + SIDE + 1, tops[0] + SIDE + 1), outline=COLOR, width=3)
            sheet.paste(join_patches(slow[slow_frames.index(position)], GRID), (left, tops[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
