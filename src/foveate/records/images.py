"""Decode images from bytes to RGB, or refuse them with a reason; thumbnails.

Every image is opened with one decoder of Pillow, chosen by the first bytes, so that neither the file name nor Pillow's
global settings decide. The size is checked before any pixel is decoded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.records.perceptual_hash import perceptual_hash

# Version of decoding and resizing, here and in `foveate.records.geometry`. Raise it whenever an image gives other
# pixels than before: caches of features depend on it.
DECODING_VERSION = 2
MAX_PIXELS = 80_000_000  # 240 MB as RGB; more is a decompression bomb or a scan that should be tiled
# Largest image that is decoded at all (805 MB as RGB): an import may be allowed more than MAX_PIXELS, for phones of
# 100 and 200 megapixels, and all its images must be readable wherever they are used.
MAX_DECODED_PIXELS = 2**28
SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "HEIF": "heic",
}
_DECODERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
# Brands of ISO base media files, which identify their content.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
# First bytes -> name and remedy of formats that are not read.
_OTHER_FORMATS = (
    (b"\xff\x0a", "JPEG XL", "convert it: djxl FILE FILE.png"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL", "convert it: djxl FILE FILE.png"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000", "convert it: opj_decompress -i FILE -o FILE.png"),
    (b"8BPS", "a Photoshop document", "export it as PNG"),
    (b"\x00\x00\x01\x00", "a Windows icon", "export it as PNG"),
    (b"%PDF", "a PDF", "render its pages: pdftoppm -png FILE PAGE"),
    (b"%!PS", "PostScript", "render it: gs -sDEVICE=png16m -o FILE.png FILE"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
)
# Errors of Pillow's decoders on damaged data, found by fuzzing: cutting files and flipping bytes of each format.
_DECODING_ERRORS = (
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
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
# Their decoders rotate an image themselves when it is opened or loaded, and report the rotated size.
_UPRIGHT = ("TIFF", "HEIF")
_ORIENTATION = 0x0112  # EXIF tag
_EXIF_DIRECTORY = 0x8769  # EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # chunks that can hold an orientation
_MAX_EXIF_SEGMENTS = 256
_EXAMINED_SIDE = 64  # enough for the perceptual hash (32), and JPEGs decode at 1/8 scale


ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""An image of the Python API: a path, the bytes of a file, a Pillow image, or uint8 pixels [H, W, 3] or [H, W]."""


# Reasons that are not in an image's bytes: a disk that is back, or an installed library, ends them.
NEEDS_EXTRA = "format needs an extra"
# Images in a row that cannot be reached, after which a run asks whether its card or disk is away.
MIN_AWAY = 8
_PASSING = {"missing file", "changed file", "missing shard", "damaged shard", "unreadable", NEEDS_EXTRA}


def is_passing(failure: str) -> bool:
    """Whether a stored failure, "reason: sentence" or only the reason, may be over on the next read."""
    return failure.partition(": ")[0] in _PASSING


class BadImage(UserError):
    """An image that cannot be imported; `reason` is a short code that is counted, the message one sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason

    @property
    def is_passing(self) -> bool:
        """Whether the same image may be readable later, so that the failure must not be stored."""
        return is_passing(self.reason)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Size in pixels after EXIF rotation, format ("JPEG"), Pillow mode and number of frames."""

    width: int
    height: int
    format: str
    mode: str
    frames: int = 1

    @property
    def note(self) -> str:
        """A remark for users, or ""."""
        return f"animated: the first of {self.frames} frames is used" if self.frames > 1 else ""


@dataclass(frozen=True, slots=True)
class Examined:
    """A completely decodable image: its info, the SHA-256 of its bytes and its perceptual hash."""

    info: ImageInfo
    sha256: str
    perceptual_hash: int


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Upright RGB pixels, which may have been shrunk, and the info of the whole image."""

    image: Image.Image
    info: ImageInfo


def detect_format(data: bytes) -> str:
    """Return JPEG, PNG, WEBP, GIF, BMP, TIFF, HEIF or AVIF by the first bytes; raise BadImage for anything else."""
    if not data:
        raise BadImage("empty file", "the image has 0 bytes")
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    # RIFF without this mark may be sound or video.
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:2] == b"BM":
        return "BMP"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "TIFF"
    if data[4:8] == b"ftyp":
        return _detect_brand(data)
    for magic, name, remedy in _OTHER_FORMATS:
        if data.startswith(magic):
            raise BadImage("format not allowed", f"the file is {name}, which is not read; {remedy}")
    # Broken downloads are often error pages: worth a reason of their own.
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    # An XML declaration, a comment or a license may come before the root element, so the search reaches further.
    if start.startswith((b"<?xml", b"<svg", b"<!doctype svg", b"<!--")) and b"<svg" in data[:4096].lower():
        raise BadImage(
            "vector graphic", "the file is SVG, which has no pixels; render it: rsvg-convert -o FILE.png FILE"
        )
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg", b"{", b"<")):
        raise BadImage("not an image", "the file is text such as HTML, XML or JSON")
    raise BadImage("format not allowed", f"unknown image format; expected {', '.join(SUFFIXES)}")


def _detect_brand(data: bytes) -> str:
    """Return HEIF or AVIF by the brands of an ISO base media file; raise BadImage for others, such as videos."""
    # Read at most 256 bytes: the stated length of a damaged box may span the whole file.
    end = min(len(data), int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end, 4))]
    # AVIF is tested first because its files also name the generic brand mif1.
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if any(brand in _HEIF_BRANDS for brand in brands):
        return "HEIF"
    name = brands[0].decode("latin-1").strip()
    raise BadImage("format not allowed", f"the file is a video or camera file ({name!r:.12}); extract an image from it")


@functools.cache
def _find_decoder(format_name: str) -> Any:
    """Return the class that opens images of a format; raise BadImage if a library for it is missing."""
    if format_name == "AVIF" and features.check("avif"):
        from PIL import AvifImagePlugin

        return AvifImagePlugin.AvifImageFile
    if format_name == "HEIF":
        with contextlib.suppress(ImportError):
            # The library is an optional extra, so it is imported only when such a file appears.
            from pillow_heif import HeifImageFile

            return HeifImageFile
    if format_name in ("AVIF", "HEIF"):
        name = "AVIF" if format_name == "AVIF" else "HEIC or HEIF"
        raise BadImage(NEEDS_EXTRA, f"the file is {name}; to read it: pip install 'foveate[heif]'")
    return _DECODERS[format_name]


def is_single_image(images: object) -> bool:
    """Whether `images` is one image instead of several."""
    if isinstance(images, np.ndarray):
        # A stack of gray images [N, H, W] has three axes, too; only a last axis of 3 makes it one color image.
        return images.ndim < 3 or (images.ndim == 3 and images.shape[2] == 3)
    return isinstance(images, str | os.PathLike | bytes | Image.Image)


def encode_input(image: ImageInput) -> bytes:
    """Return the bytes of an image file: of a path, or of pixels as a PNG (rotated as their EXIF says).

    Raises:
        BadImage: the file cannot be read, or is none.
        UserError: `image` is of another type, or an array of another shape or type.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, np.ndarray):
        has_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not has_shape or not image.size:
            raise UserError(
                f"image: expected an array uint8 [H, W, 3] or [H, W] (got {image.dtype} {list(image.shape)})"
            )
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        # PNG has no other modes: CMYK, YCbCr and floats become RGB, what has transparency keeps it.
        if upright.mode not in ("L", "LA", "P", "RGB", "RGBA", "I;16"):
            upright = upright.convert("RGBA" if upright.mode in ("RGBa", "La", "PA") else "RGB")
        buffer = io.BytesIO()
        # Little compression: the bytes are decoded again at once.
        upright.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        # A pipe would wait for its writer for ever.
        if path.exists() and not path.is_file():
            raise BadImage("no regular file", f"{path}: is a folder, pipe, socket or device; expected an image file")
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadImage("unreadable", f"{image}: cannot be read ({error.strerror})") from error
    raise UserError(f"image: expected a path, bytes, a Pillow image or an array (got {type(image).__name__})")


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Decode an image completely and return its info.

    Raises:
        BadImage: it is empty, not an image, of a format that is not allowed, larger than `max_pixels` (width times
            height in its header), or damaged. A truncated image is refused, never filled with gray.
    """
    return _open_whole(data, longest_side=_EXAMINED_SIDE, max_pixels=max_pixels)[1]


def read_image_info(data: bytes, *, max_pixels: int = MAX_DECODED_PIXELS) -> tuple[ImageInfo, bool]:
    """Read image info from the header without decoding; also return whether the pixels are stored upright.

    Raises:
        BadImage: as `check`, except that damage behind the header is not noticed.
    """
    format_name = detect_format(data)
    with _decoding(format_name):
        image = _open_decoder(data, format_name, max_pixels)
        # Pillow counts frames by reading through the file, and may meet damage there.
        frames = getattr(image, "n_frames", 1) if format_name in _ANIMATED else 1
        # Pillow decodes a whole PNG in search of its EXIF, which may come last.
        without = format_name in _UPRIGHT or (format_name == "PNG" and not any(name in data for name in _PNG_EXIF))
        orientation = 1 if without else image.getexif().get(_ORIENTATION, 1)
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    return ImageInfo(width, height, format_name, image.mode, frames), orientation not in _TRANSPOSES


def read_exif(data: bytes, *, max_pixels: int = MAX_DECODED_PIXELS) -> dict[int, object]:
    """Read the EXIF tags of an image and of its Exif directory without decoding; {} if there are none.

    Raises:
        BadImage: as `read_image_info`.
    """
    format_name = detect_format(data)
    with _decoding(format_name):
        exif = _open_decoder(data, format_name, max_pixels).getexif()
        return {**exif, **exif.get_ifd(_EXIF_DIRECTORY)}


def decode(data: bytes, *, longest_side: int | None = None, max_pixels: int = MAX_DECODED_PIXELS) -> Image.Image:
    """Decode an image to RGB, rotated by its EXIF orientation; of an animation the first frame.

    Transparent pixels become white, 16-bit gray is scaled to 8 bits, color profiles are ignored.

    Args:
        longest_side: shrink (never enlarge) the longer side to this number of pixels; a JPEG is decoded at a fraction.

    Raises:
        BadImage: as `check`.
    """
    return decode_with_info(data, longest_side=longest_side, max_pixels=max_pixels).image


def decode_input(image: ImageInput) -> Image.Image:
    """Decode an image as `decode(encode_input(image))` does, without the way through a file where it changes nothing.

    Raises:
        BadImage, UserError: as both of them.
    """
    if isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info:
        # A file that is opened lazily may be damaged.
        with _decoding(image.format or "PNG"):
            if not image.getexif() and 0 < image.width * image.height <= MAX_DECODED_PIXELS:
                return image.copy()
    return decode(encode_input(image))


def decode_with_info(
    data: bytes, *, longest_side: int | None = None, max_pixels: int = MAX_DECODED_PIXELS
) -> DecodedImage:
    """Decode an image like `decode`, and return its info too: `check` and `decode` in one decoding."""
    if longest_side is not None and longest_side < 1:
        raise UserError(f"longest_side must be at least 1 (got {longest_side})")
    return DecodedImage(*_open_whole(data, longest_side=longest_side, max_pixels=max_pixels))


def decode_fraction(
    data: bytes, *, min_side: int, max_pixels: int = MAX_DECODED_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image like `decode`, for a caller that resizes it once: nothing is resized here.

    A JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 (rounded up) whose longer side still has `min_side`
    pixels, several times faster than whole; other formats stay whole. `foveate.records.geometry.Placement.render` takes
    such fractions.

    Returns:
        The image, and the width and height of the whole image.
    """
    if min_side < 1:
        raise UserError(f"min_side must be at least 1 (got {min_side})")
    image, info = _open_whole(data, longest_side=None, draft_side=min_side, max_pixels=max_pixels)
    return image, (info.width, info.height)


def examine(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Examined:
    """Check an image and compute its SHA-256 and perceptual hash in one decoding; raise BadImage as `check`."""
    small, info = _open_whole(data, longest_side=_EXAMINED_SIDE, max_pixels=max_pixels)
    return Examined(info, hashlib.sha256(data).hexdigest(), perceptual_hash(small))


def _open_whole(
    data: bytes, *, longest_side: int | None, max_pixels: int, draft_side: int | None = None
) -> tuple[Image.Image, ImageInfo]:
    format_name = detect_format(data)
    with _decoding(format_name):
        image = _open_decoder(data, format_name, max_pixels)
        # The header's mode and size are read first, because `draft` and `load` change those of the opened image.
        mode = image.mode
        frames = getattr(image, "n_frames", 1) if format_name in _ANIMATED else 1
        orientation = 1 if format_name in _UPRIGHT else image.getexif().get(_ORIENTATION, 1)
        width, height = image.size
        upright_size = (height, width) if orientation in (5, 6, 7, 8) else (width, height)
        draft_side = longest_side if draft_side is None else draft_side
        if draft_side is not None and format_name == "JPEG":
            # libjpeg shrinks within its DCT blocks, so that most pixels are never computed.
            image.draft(None, _shrunk(width, height, draft_side))
        # Load before any conversion, so that a truncated file raises here.
        image.load()
        image = to_rgb(image, orientation)
    if longest_side is not None and max(image.size) > longest_side:
        image = image.resize(_shrunk(*upright_size, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return image, ImageInfo(*upright_size, format_name, mode, frames)


def iterate_frames(
    data: bytes, *, indices: Container[int], max_pixels: int = MAX_DECODED_PIXELS
) -> Iterator[tuple[float, Image.Image | None]]:
    """Decode the frames of an image in order; yield the seconds at which each begins, and its pixels in RGB.

    A still image has one frame, an animated GIF, WebP or PNG several. Frames build on those before them, so that all
    are decoded; those that are not in `indices` have no pixels here (None).

    Raises:
        BadImage: as `check`, at the frame that is damaged.
    """
    format_name = detect_format(data)
    with _decoding(format_name):
        image = _open_decoder(data, format_name, max_pixels)
        num_frames = getattr(image, "n_frames", 1) if format_name in _ANIMATED else 1
    seconds = 0.0
    for index in range(num_frames):
        with _decoding(format_name):
            image.seek(index)
            image.load()
            # Frames that say 0 ms are shown by browsers for 100.
            milliseconds = float(image.info.get("duration") or 100)
            frame = None
            if index in indices:
                orientation = 1 if format_name in _UPRIGHT else image.getexif().get(_ORIENTATION, 1)
                frame = to_rgb(image, orientation)
                # The decoder draws the next frame into the same image.
                frame = frame.copy() if frame is image else frame
        yield seconds, frame
        seconds += milliseconds / 1000


def _open_decoder(data: bytes, format_name: str, max_pixels: int) -> Image.Image:
    if format_name == "WEBP":
        # Pillow's WebP decoder allocates the whole canvas when it opens a file, so the header is checked before.
        _check_size(*_webp_size(data), max_pixels)
    if format_name == "JPEG" and (num_segments := data.count(b"Exif\0\0")) > _MAX_EXIF_SEGMENTS:
        # Pillow joins them one by one, which takes minutes for the 940,000 that fit into 19 MB.
        raise BadImage(
            "damaged", f"the JPEG image has {num_segments:,} EXIF segments; expected at most {_MAX_EXIF_SEGMENTS}"
        )
    image = _find_decoder(format_name)(io.BytesIO(data))
    width, height = image.size
    _check_size(width, height, max_pixels)
    if format_name == "JPEG":
        _check_jpeg_length(data, width, height)
    return image


@contextlib.contextmanager
def _decoding(format_name: str) -> Iterator[None]:
    """Raise BadImage for what Pillow's decoders raise in the block."""
    try:
        yield
    # BadImage is a ValueError, too, and has to keep its own reason.
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own limit, which it applies to the frames of a GIF: they may be larger than the image.
        raise BadImage("too many pixels", f"the {format_name} image is refused: {_one_line(error)}") from error
    except _DECODING_ERRORS as error:
        reason = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadImage(reason, f"the {format_name} image is {reason}: {_one_line(error)}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage("damaged", f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage(
            "too many pixels",
            f"the header says {width} x {height} pixels; expected at most {max_pixels:,} in all",
        )


def _check_jpeg_length(data: bytes, width: int, height: int) -> None:
    """Refuse a JPEG that is too short for its header, before the decoder takes memory for all of it.

    A Huffman code has at least one bit, and each block of 8 x 8 pixels at least one code (ITU-T T.81, F.1.2 and G.1.2).
    Without this a kilobyte that says 20000 x 8945 took 1.3 GB, and 10 s where the system filled every page with zeros.
    An arithmetic code may take less than a bit. It is not excepted, since any file could say that it has one: browsers
    show no such images, and they come below the bound only in plain areas.
    """
    num_blocks = -(-width // 8) * -(-height // 8)
    if 8 * len(data) < num_blocks:
        needed = f"{width} x {height} pixels need at least {num_blocks // 8:,}"
        raise BadImage("truncated", f"the JPEG image is truncated: {len(data):,} bytes; {needed}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read the canvas size from a WebP header (RFC 9649, sections 2.5 to 2.7)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        # The upper two bits of each field are a scaling hint for players and do not belong to the size.
        return width & 0x3FFF, height & 0x3FFF
    raise BadImage("damaged", "the WEBP image has no VP8, VP8L or VP8X header")


def _shrunk(width: int, height: int, longest_side: int) -> tuple[int, int]:
    scale = min(1.0, longest_side / max(width, height))
    # Rounding would give a very narrow image a short side of 0 pixels.
    return max(1, round(width * scale)), max(1, round(height * scale))


def to_rgb(image: Image.Image, orientation: int = 1) -> Image.Image:
    """Convert a loaded image to 8-bit RGB on white, rotated by its EXIF orientation.

    Raises:
        BadImage: its pixels are floats or integers of more than 16 bits.
    """
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.uint16)
        # The upper byte of a 16-bit value is that value on a scale to 255.
        rgb = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode == "I":
        values = np.asarray(image)
        # Pillow returns some 16-bit gray files as 32-bit integers; for larger values no scale to 8 bits is known.
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadImage("pixel type not allowed", "32-bit integer pixels are not supported")
        rgb = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode == "F":
        raise BadImage("pixel type not allowed", "floating-point pixels are not supported")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # A palette or RGB image without an alpha channel may still declare one color as transparent, in its `info`.
        layers = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, (255, 255, 255))
        rgb.paste(layers, mask=layers.getchannel("A"))
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else rgb


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def make_thumbnail(image: bytes | Image.Image, *, longest_side: int = 448, quality: int = 85) -> bytes:
    """Return a WebP thumbnail of at most `longest_side` pixels for a page.

    Raises:
        BadImage: bytes cannot be decoded.
    """
    image = decode(image, longest_side=longest_side) if isinstance(image, bytes) else image.convert("RGB")
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def save_thumbnail(image: bytes | Image.Image, path: Path, *, longest_side: int = 448) -> Path:
    """Write a thumbnail to `path` and return the path."""
    write_bytes_atomically(path, make_thumbnail(image, longest_side=longest_side))
    return path
