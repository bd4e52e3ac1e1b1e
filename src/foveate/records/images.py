"""Reading images from bytes: what is allowed in, and how it becomes an RGB image.

Every image is opened with one named decoder of Pillow, chosen by the first bytes, so that neither the file
name nor Pillow's global settings decide. The size is looked at before any pixel is unpacked.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.records.perceptual_hash import perceptual_hash


def make_thumbnail(image: bytes | Image.Image, *, longest_side: int = 448, quality: int = 85) -> bytes:
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
    """Writes `make_thumbnail` to `path`; returns it."""
    write_bytes_atomically(path, make_thumbnail(image, longest_side=longest_side))
    return path


# Of unpacking and resizing (here and in `foveate.records.geometry`): raise it whenever the same image gives other
# pixels than before, so that nothing that was made of the former ones and kept is used again.
DECODING_VERSION = 2
MAX_PIXELS = 80_000_000
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
_DECODERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# What Pillow's decoders raise on damaged data, found by cutting and flipping bytes of each format.
_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXAMINED_SIDE = 64


class BadImage(UserError):
    """An image that cannot be taken in. `reason` is a short code that is counted, the message one
    sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image's bytes hold: pixels after EXIF rotation, format ("JPEG"), Pillow mode, number of
    frames."""

    width: int
    height: int
    format: str
    mode: str
    frames: int = 1

    @property
    def note(self) -> str:
        """What a reader should know of it, or ""."""
        return f"animated: the first of {self.frames} frames is used" if self.frames > 1 else ""


@dataclass(frozen=True, slots=True)
class Examined:
    """An image that decoded from end to end: its info, the SHA-256 of its bytes, its perceptual hash."""

    info: ImageInfo
    sha256: str
    perceptual_hash: int


def detect_format(data: bytes) -> str:
    """The format of the bytes: one of JPEG, PNG, WEBP, GIF, BMP, TIFF. Raises BadImage for all else."""
    if not data:
        raise BadImage("empty file", "the image has 0 bytes")
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg", b"{", b"<")):
        raise BadImage("not an image", "the file holds text such as HTML, XML or JSON, not an image")
    raise BadImage("format not allowed", f"the file is none of {', '.join(_DECODERS)}")


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Decode an image from end to end and say what it is.

    Raises BadImage where it is empty, no image, of a format not allowed, larger than `max_pixels`
    (width x height, judged by the header), or damaged. A truncated image is refused, never half gray.
    """
    return _open_whole(data, longest_side=_EXAMINED_SIDE, max_pixels=max_pixels)[1]


def read_image_info(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[ImageInfo, bool]:
    """What the header of an image says, without unpacking its pixels; and whether these are stored upright.

    Raises BadImage where it is empty, no image, of a format not allowed, larger than `max_pixels`, or its header is
    damaged. What is behind the header may still be damaged.
    """
    format_name = detect_format(data)
    try:
        if format_name == "WEBP":
            _check_size(*_webp_size(data), max_pixels)
        image = _DECODERS[format_name](io.BytesIO(data))
        _check_size(*image.size, max_pixels)
        frames = getattr(image, "n_frames", 1) if format_name in ("GIF", "WEBP", "PNG") else 1
        orientation = 1 if format_name == "TIFF" else image.getexif().get(_ORIENTATION, 1)
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too many pixels", f"the {format_name} image is refused: {_one_line(error)}") from error
    except _DAMAGE as error:
        raise BadImage("damaged", f"the {format_name} image is damaged: {_one_line(error)}") from error
    return ImageInfo(width, height, format_name, image.mode, frames), orientation not in _TURNS


def decode(data: bytes, *, longest_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says; of an animation the first frame.

    With `longest_side` the image is shrunk (never enlarged) so that its longer side has that many pixels; a
    JPEG is then unpacked at a fraction of its size. Transparent pixels are laid on white, 16-bit gray is
    scaled to 8 bits, color profiles are ignored. Raises BadImage as `check` does.
    """
    if longest_side is not None and longest_side < 1:
        raise UserError(f"longest_side: allowed is a whole number of at least 1, got {longest_side}")
    return _open_whole(data, longest_side=longest_side, max_pixels=max_pixels)[0]


def decode_fraction(
    data: bytes, *, least_side: int, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """The image as `decode` gives it, for a caller that resizes it once: nothing is resized here.

    A JPEG is unpacked at the smallest of 1/1, 1/2, 1/4 and 1/8 (rounded up) whose longer side still has `least_side`
    pixels; all else stays whole. `foveate.records.geometry.Placement.render` knows such fractions.

    Returns:
        The image, and the width and height of the whole one.
    """
    if least_side < 1:
        raise UserError(f"least_side: allowed is a whole number of at least 1, got {least_side}")
    image, info = _open_whole(data, longest_side=None, draft_side=least_side, max_pixels=max_pixels)
    return image, (info.width, info.height)


def examine(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Examined:
    """Check an image and compute its SHA-256 and perceptual hash, in one decoding. Raises BadImage."""
    small, info = _open_whole(data, longest_side=_EXAMINED_SIDE, max_pixels=max_pixels)
    return Examined(info, hashlib.sha256(data).hexdigest(), perceptual_hash(small))


def _open_whole(
    data: bytes, *, longest_side: int | None, max_pixels: int, draft_side: int | None = None
) -> tuple[Image.Image, ImageInfo]:
    format_name = detect_format(data)
    try:
        if format_name == "WEBP":
            # This decoder allocates the whole canvas when it opens, so its header is read here first.
            _check_size(*_webp_size(data), max_pixels)
        image = _DECODERS[format_name](io.BytesIO(data))
        _check_size(*image.size, max_pixels)
        mode = image.mode
        frames = getattr(image, "n_frames", 1) if format_name in ("GIF", "WEBP", "PNG") else 1
        # Pillow turns a TIFF by itself when it loads, and gives its size as turned.
        orientation = 1 if format_name == "TIFF" else image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
        shown = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
        draft_side = longest_side if draft_side is None else draft_side
        if draft_side is not None and format_name == "JPEG":
            image.draft(None, _shrunk(width, height, draft_side))
        image.load()
        image = _to_rgb(image, orientation)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own check, which it makes of a GIF's frames: they may be larger than the image.
        raise BadImage("too many pixels", f"the {format_name} image is refused: {_one_line(error)}") from error
    except _DAMAGE as error:
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadImage(reason, f"the {format_name} image is {reason}: {_one_line(error)}") from error
    if longest_side is not None and max(image.size) > longest_side:
        image = image.resize(_shrunk(*shown, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image, ImageInfo(*shown, format_name, mode, frames)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage("damaged", f"the image's header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage(
            "too many pixels",
            f"the image's header says {width} x {height} pixels; allowed are {max_pixels:,} in all",
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size from a WebP header (RFC 9649, sections 2.5 to 2.7)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise BadImage("damaged", "the WEBP image has no VP8, VP8L or VP8X header")


def _shrunk(width: int, height: int, longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """8-bit RGB of a loaded image, transparency on white, turned as its EXIF orientation says."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        rgb = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadImage("pixel type not allowed", "the image has 32-bit integers as pixels")
        rgb = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        raise BadImage("pixel type not allowed", "the image has floating-point numbers as pixels")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(layers, mask=layers.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
