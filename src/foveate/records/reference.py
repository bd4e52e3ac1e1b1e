"""Referenced images: files outside of the collection, checked whenever they are read.

A file counts as the imported image if its length and modification time are the recorded ones. If only the time differs,
the SHA-256 decides: a copied or touched file is still read, another image under the same path is refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records.images import BadImage

# Clocks of file systems may lag behind, and are coarse (two seconds on FAT).
CLOCK_SLACK_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Reference:
    """Path of an image file and its modification time.

    Args:
        path: absolute, or relative to the collection if the file is inside of it.
        mtime_ns: 0 if the file changed so shortly before the import that its time proves nothing; then the SHA-256 is
            compared at every reading.
    """

    path: str
    mtime_ns: int


def make_reference(location: Path, *, collection: Path, length: int, began_ns: int) -> Reference:
    """Make a reference to a file that an import has just read.

    Args:
        length: number of bytes that were read.
        began_ns: start of the import, nanoseconds since 1970.

    Raises:
        BadImage: the file vanished or has another length now.
        UserError: its path is not valid Unicode and cannot be stored.
    """
    try:
        status = location.stat()
    except FileNotFoundError as error:
        raise BadImage("missing file", f"{location} vanished during the import") from error
    if status.st_size != length:
        raise BadImage("changed file", f"{location} changed during the import")
    file, home = location.resolve(), collection.resolve()
    inside = file.is_relative_to(home)
    path = (file.relative_to(home) if inside else file).as_posix()
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path {path!r} is not valid Unicode and cannot be referenced; import without --reference"
        ) from error
    # A file written a moment ago could be written again within the same clock tick, with an equal time.
    settled = 0 < status.st_mtime_ns < began_ns - CLOCK_SLACK_NS
    return Reference(path, status.st_mtime_ns if settled else 0)


def read_reference(
    path: str, *, collection: Path, length: int, mtime_ns: int, sha256: str, verify: bool = False
) -> bytes:
    """Read the bytes of a referenced image.

    Args:
        verify: compare the SHA-256 even if length and time agree.

    Raises:
        BadImage: with the reason "missing file", "changed file", or "unreadable" (permissions, a broken disk).
    """
    target = collection / path
    try:
        # Non-blocking: opening a pipe that took the place of the file would wait for ever.
        descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("changed file", f"{target} is not a regular file any more")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(length + 1) if status.st_size == length else b""
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage("missing file", f"{target} is missing: it was moved or deleted") from error
    except OSError as error:
        raise BadImage("unreadable", f"{target} cannot be read: {error.strerror or error}") from error
    same = len(data) == length and status.st_size == length
    if same and (verify or mtime_ns == 0 or status.st_mtime_ns != mtime_ns):
        same = hashlib.sha256(data).hexdigest() == sha256
    if not same:
        raise BadImage("changed file", f"{target} is not the imported image: its bytes changed")
    return data
