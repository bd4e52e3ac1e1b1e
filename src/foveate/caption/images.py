"""Images as captioners get them: at most so many pixels a side, upright, one frame, in a format that all read."""

from __future__ import annotations

import io
from dataclasses import dataclass

from foveate.records.images import decode, read_image_info

# Formats and pixel types that every server reads in the same way; all else is written anew.
_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_PLAIN = ("L", "RGB")
_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Prepared:
    """The bytes of an image, their media type, and its width and height in pixels."""

    data: bytes
    media_type: str
    width: int
    height: int


def prepare(data: bytes, *, longest_side: int) -> Prepared:
    """The image for a captioner.

    Its bytes stay as they are where they are a JPEG, PNG or WebP of one frame, upright, without transparency or
    palette, and at most `longest_side` pixels a side. Else it is decoded, shrunk (never enlarged) and written as a JPEG
    of quality 92.

    Raises:
        BadImage: where it cannot be decoded.
    """
    info, upright = read_image_info(data)
    usable = info.format in _TYPES and info.mode in _PLAIN and info.frames == 1 and upright
    if usable and max(info.width, info.height) <= longest_side:
        return Prepared(data, _TYPES[info.format], info.width, info.height)
    image = decode(data, longest_side=longest_side)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return Prepared(buffer.getvalue(), "image/jpeg", image.width, image.height)
