"""Images, good and bad, made in memory for the tests of records."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, *, width: int = 48, height: int = 32) -> Image.Image:
    """A blocky random RGB image: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return blocks.resize((width, height), Image.Resampling.NEAREST)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image in a format."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(seed: int, **size: int) -> bytes:
    """A small JPEG."""
    return encoded(noise(seed, **size))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is `width` x `height` (1 bit gray) and whose pixels unpack to zeros."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(line) for _ in range(min(height, 1000))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_folder(folder: Path, count: int) -> Path:
    """A folder of `count` small JPEGs with captions, in subfolders of 20, some with regions."""
    for number in range(count):
        place = folder / f"part{number // 20:02d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"p{number:04d}.jpg").write_bytes(jpeg(number))
        if number % 4 != 3:
            (place / f"p{number:04d}.txt").write_text(f"caption of image {number}", encoding="utf-8")
        if number % 5 == 0:
            good, bad = {"box": [4, 4, 20, 30], "phrase": "block"}, {"box": [9, 9, 1, 1], "phrase": "x"}
            text = json.dumps({"regions": [good, bad]})
            (place / f"p{number:04d}.json").write_text(text, encoding="utf-8")
    return folder
