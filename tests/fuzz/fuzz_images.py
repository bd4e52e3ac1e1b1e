"""Images of every format that is taken in, whole and hostile."""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from random import Random

import numpy as np
from fuzz_values import damaged
from PIL import Image

_SIDES = (0, 1, 2, 3, 17, 255, 5000, 8944, 8945, 20_000, 32_767, 65_535, 0x7FFFFFFF, 0xFFFFFFFF)


def _image(mode: str, seed: int) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    image = Image.fromarray(colors)
    if mode == "P+transparency":
        image = image.convert("P")
        image.info["transparency"] = 0
        return image
    if mode == "I;16":
        return Image.fromarray(colors[..., 0].astype(np.uint16) * 257)
    return image.convert(mode)


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@functools.cache
def whole() -> tuple[bytes, ...]:
    """One image of each kind."""
    made = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "CMYK"):
        made.append(_saved(_image(mode, 1), "JPEG", exif=exif))
    made.append(_saved(_image("RGB", 2), "JPEG", progressive=True, icc_profile=b"no profile" * 20))
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "P+transparency"):
        made.append(_saved(_image(mode, 3), "PNG"))
    more = [_image("RGB", seed) for seed in (4, 5)]
    made.append(_saved(_image("RGBA", 6), "PNG", save_all=True, append_images=more))
    made.append(_saved(_image("P", 7), "GIF"))
    made.append(_saved(_image("P", 7), "GIF", save_all=True, append_images=more, disposal=2))
    for options in ({}, {"lossless": True}, {"save_all": True, "append_images": more}):
        made.append(_saved(_image("RGBA", 8), "WEBP", **options))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        made.append(_saved(_image(mode, 9), "BMP"))
    for mode in ("1", "L", "RGB", "CMYK", "I;16", "F", "RGBA"):
        made.append(_saved(_image(mode, 10), "TIFF"))
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made.append(_saved(_image("RGB", 11), "TIFF", compression=packing))
    made.append(_saved(_image("RGB", 12), "TIFF", save_all=True, append_images=more))
    return tuple(made)


@functools.cache
def good(seed: int, side: int = 24) -> bytes:
    """A small JPEG that can be read."""
    return _saved(_image("RGB", 100 + seed).resize((side, side * 3 // 4)), "JPEG")


def random_image(random: Random) -> bytes:
    """Bytes that want to be an image: whole, damaged, with a false size, of two formats, or of none."""
    choice = random.random()
    if choice < 0.12:
        return random.choice(whole())
    if choice < 0.72:
        return damaged(random, random.choice(whole()))
    if choice < 0.88:
        return resized(random, random.choice(whole()))
    if choice < 0.92:
        first, second = random.choice(whole()), random.choice(whole())
        return first[: random.randrange(4, 40)] + second[random.randrange(0, 40) :]
    if choice < 0.95:
        return _bomb(random)
    if choice < 0.98:
        return random.choice(whole())[: random.choice((1, 2, 3, 4, 8, 12, 20, 30))]
    return random.choice(
        (b"", b"<svg xmlns='x'/>", b"<html>", b"\0" * 100, b"8BPS" + bytes(50), b"P6 9 9 255 ", b"\0\0\1\0")
    )


def resized(random: Random, data: bytes) -> bytes:
    """The image with another size in its header; a PNG's checksum is made right again."""
    width, height = random.choice(_SIDES), random.choice(_SIDES)
    content = bytearray(data)
    if data[:4] == b"\x89PNG":
        struct.pack_into(">II", content, 16, width, height)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    elif data[:3] == b"GIF":
        struct.pack_into("<HH", content, random.choice((6, data.find(b",", 13) + 5)), width & 0xFFFF, height & 0xFFFF)
    elif data[:2] == b"BM":
        struct.pack_into("<II", content, 18, width, height)
    elif data[:2] == b"\xff\xd8":
        start = re.search(rb"\xff[\xc0-\xc2]\x00.\x08", data, re.DOTALL)
        if start:
            struct.pack_into(">HH", content, start.start() + 5, height & 0xFFFF, width & 0xFFFF)
    elif data[:4] == b"RIFF":
        struct.pack_into("<I", content, 24, width)
        struct.pack_into("<H", content, 28, height & 0xFFFF)
    else:
        for tag, value in ((256, width), (257, height)):
            place = data.find(struct.pack("<H", tag) + b"\x03\x00\x01") if random.random() < 0.8 else -1
            if place >= 0:
                struct.pack_into("<HII", content, place + 2, 4, 1, value)
    return bytes(content)


def _bomb(random: Random) -> bytes:
    """A small PNG that unpacks to very many pixels."""
    width, height = random.choice(((8000, 9999), (30_000, 30_000), (1, 10**7), (10**7, 1), (65_535, 1200)))

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    lines = zlib.compress(bytes(min(height, 300) * (1 + (width + 7) // 8)))
    extra = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000))) if random.random() < 0.3 else b""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
