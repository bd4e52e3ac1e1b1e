"""Decode text files of unknown encoding: by byte order mark, as UTF-8, or by statistics."""

from __future__ import annotations

import codecs
import re

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Windows-1252 and Latin-1 alike: letters with accents, and what typographers put between words.
_PLAUSIBLE = bytes([0x80, 0x82, 0x84, 0x85, 0x8A, 0x8C, 0x8E, *range(0x91, 0x98), 0x99, 0x9A, 0x9C, *range(0x9E, 256)])
_ASCII = bytes(range(128))
_HIGH_RUN = re.compile(rb"[\x80-\xff]{4,}")
# Half of the bytes of European text in UTF-16 are zero.
_MIN_ZEROS = 0.3


def decode_text(data: bytes) -> tuple[str, str]:
    """Decode a text file; return its text, and "utf-8", "utf-16", "utf-32" or "windows-1252" (with Latin-1).

    Without a byte order mark UTF-16 is recognized by its zeros, and Windows-1252, if the bytes are no UTF-8, by accents
    that stand alone among plain letters: Cyrillic and East Asian encodings have long runs of such bytes.

    Raises:
        UnicodeDecodeError: the encoding cannot be recognized.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return data.decode(name), name
    half = len(data) // 2
    for encoding, zeros in (("utf-16-le", data[1::2].count(0)), ("utf-16-be", data[::2].count(0))):
        if half >= 2 and len(data) % 2 == 0 and zeros > 2 * _MIN_ZEROS * half:
            return data.decode(encoding), "utf-16"
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        # Counted by `translate`, since a table of a gigabyte would take a loop of Python minutes.
        num_high = len(data.translate(None, _ASCII))
        sparse = num_high <= 2 * len(data) / 3 and not _HIGH_RUN.search(data)
        if 0 in data or not sparse or data.translate(None, _ASCII + _PLAUSIBLE):
            raise
    return data.decode("windows-1252"), "windows-1252"
