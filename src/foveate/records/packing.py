"""Write images as members of a shard, a plain WebDataset tar."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from foveate.records.images import SUFFIXES
from foveate.records.layout import member_name


def append_member(tar: tarfile.TarFile, key: str, format: str, data: bytes) -> int:
    """Write one image of a format ("JPEG") to an open tar; return the offset of its bytes."""
    member = tarfile.TarInfo(member_name(key, SUFFIXES[format]))
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    # tarfile does not return the start of a member, so count back from its padded end.
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE


def pad_member(end: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the member behind one begins whose bytes end at `end`."""
    return -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def write_end(file: BinaryIO) -> None:
    """Write what tarfile writes at the end: two empty blocks, and zeros up to a whole record."""
    size = file.tell() + 2 * tarfile.BLOCKSIZE
    file.write(bytes(-(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - file.tell()))


def abandon(tar: tarfile.TarFile) -> None:
    """Close a tar without writing its end mark, which would fail on a full disk."""
    with contextlib.suppress(OSError):
        if tar.fileobj is not None:
            tar.fileobj.close()
