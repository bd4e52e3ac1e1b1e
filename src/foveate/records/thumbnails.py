"""Small WebP images for pages: decoded with the same care as everything else, written atomically."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from foveate.core.files import write_bytes_atomically
from foveate.records.images import decode


def thumbnail(image: bytes | Image.Image, *, longest_side: int = 448, quality: int = 85) -> bytes:
    """An image as WebP bytes of at most `longest_side` pixels.

    Raises:
        BadImage: when bytes are given that cannot be decoded.
    """
    image = decode(image, longest_side=longest_side) if isinstance(image, bytes) else image.convert("RGB")
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def save_thumbnail(image: bytes | Image.Image, path: Path, *, longest_side: int = 448) -> Path:
    """Writes `thumbnail` to `path`; returns it."""
    write_bytes_atomically(path, thumbnail(image, longest_side=longest_side))
    return path
