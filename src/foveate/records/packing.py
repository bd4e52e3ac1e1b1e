"""Write images as members of a shard, a plain WebDataset tar."""

from __future__ import annotations

import contextlib
import io
import tarfile

from foveate.records.images import SUFFIXES
from foveate.records.layout import member_name


def append_member(tar: tarfile.TarFile, key: str, format: str, data: bytes) -> int:
    """Write one image of a format ("JPEG") to an open tar; return the offset of its bytes."""
    member = tarfile.TarInfo(member_name(key, SUFFIXES[format]))
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    # tarfile does not tell where a member starts: count back from its padded end.
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE


def abandon(tar: tarfile.TarFile) -> None:
    """Close a tar without writing its end mark, which would fail on a full disk."""
    with contextlib.suppress(OSError):
        if tar.fileobj is not None:
            tar.fileobj.close()
