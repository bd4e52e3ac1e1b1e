"""Read the files inside a Qt resource file (.rcc) without Qt.

Layout (Qt's own documentation of rcc, format versions 1 to 3): magic `qres`; big-endian version and offsets of tree,
data and names; tree nodes of 14 bytes (version 1) or 22; names as length, hash, UTF-16.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from foveate.core.errors import UserError

_ZLIB, _FOLDER, _ZSTD = 1, 2, 4
_MAX_BYTES = 256 * 2**20  # of one file inside


def read_rcc(path: Path) -> dict[str, bytes]:
    """Map the path of every file that is stored plain or packed with zlib to its bytes.

    Files packed with zstd are left out: the images of the packages that are read here are stored plain.

    Raises:
        UserError: the file is no resource file or is cut off.
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise UserError(f"{path}: not a Qt resource file (it does not begin with 'qres')")
    try:
        return _files(data)
    except (struct.error, zlib.error, UnicodeDecodeError, IndexError, RecursionError) as problem:
        raise UserError(f"{path}: the resource file is broken ({problem})") from problem


def _files(data: bytes) -> dict[str, bytes]:
    version, tree, body, names = struct.unpack_from(">4I", data, 4)
    size = 14 if version == 1 else 22
    contents: dict[str, bytes] = {}
    seen: set[int] = set()

    def walk(number: int, prefix: str) -> None:
        # A damaged tree could point back to a parent and recurse forever.
        if number in seen:
            raise IndexError("a node is its own child")
        seen.add(number)
        at = tree + number * size
        name_at, flags = struct.unpack_from(">IH", data, at)
        name = _name(data, names + name_at) if number else ""
        path = f"{prefix}/{name}" if name else prefix
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                walk(child, path)
        elif not flags & _ZSTD:
            (start,) = struct.unpack_from(">I", data, at + 10)
            contents[path] = _content(data, body + start, packed=bool(flags & _ZLIB))

    walk(0, "")
    return contents


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, at: int, *, packed: bool) -> bytes:
    (length,) = struct.unpack_from(">I", data, at)
    content = data[at + 4 : at + 4 + length]
    if len(content) != length:
        raise IndexError("a file inside is cut off")
    # Four bytes of the unpacked length come first.
    return zlib.decompressobj().decompress(content[4:], _MAX_BYTES) if packed else content
