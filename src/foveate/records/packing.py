"""Images as members of a shard, a plain WebDataset tar."""

from __future__ import annotations

import contextlib
import io
import tarfile

from foveate.records.images import SUFFIXES
from foveate.records.layout import member_name


def append_member(tar: tarfile.TarFile, key: str, format: str, data: bytes) -> int:
    """Write one image of a format ("JPEG") to a tar that is open for writing; returns the offset of its bytes."""
    member = tarfile.TarInfo(member_name(key, SUFFIXES[format]))
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return tar.offset - blocks * tarfile.BLOCKSIZE


def abandon(tar: tarfile.TarFile) -> None:
    """Close a tar without its end mark, which a full disk would refuse."""
    with contextlib.suppress(OSError):
        if tar.fileobj is not None:
            tar.fileobj.close()
