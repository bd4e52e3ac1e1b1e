"""Small WebP pictures for pages: decoded with the same care as everything else, written atomically."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from foveate.records.pictures import decode
from foveate.settings.files import write_bytes_atomically


def thumbnail(picture: bytes | Image.Image, *, longest_side: int = 448, quality: int = 85) -> bytes:
    """A picture as WebP bytes of at most `longest_side` pixels.

    Raises:
        BadPicture: when bytes are given that cannot be decoded.
    """
    image = decode(picture, longest_side=longest_side) if isinstance(picture, bytes) else picture.convert("RGB")
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def save_thumbnail(picture: bytes | Image.Image, path: Path, *, longest_side: int = 448) -> Path:
    """Writes `thumbnail` to `path`; returns it."""
    write_bytes_atomically(path, thumbnail(picture, longest_side=longest_side))
    return path
