"""Images that stay where they are: how the index names their files, and how they are read or refused.

A file is believed to be the image that was taken in when its length and modification time are the recorded ones.
Where the time differs the SHA-256 decides, so that a copied or touched file is still read and another image that
took its place, or that a moved collection happens to point at, is not.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records.images import BadImage

# A file system's clock may be a little behind, and coarse (two seconds on FAT).
CLOCK_SLACK_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image's file lies (absolute, or relative to the collection) and its modification time.

    `mtime_ns` is 0 where the time proves nothing, because the file was younger than the import that read it; its
    SHA-256 is then compared at every reading.
    """

    path: str
    mtime_ns: int


def make_reference(location: Path, *, collection: Path, length: int, began_ns: int) -> Reference:
    """The reference to a file whose `length` bytes were read after the time `began_ns` (nanoseconds since 1970).

    Raises BadImage where the file vanished or has another length by now, and UserError where its path is no
    valid Unicode and so cannot be stored.
    """
    try:
        found = location.stat()
    except FileNotFoundError as error:
        raise BadImage("missing file", f"{location} vanished while it was taken in") from error
    if found.st_size != length:
        raise BadImage("changed file", f"{location} changed while it was taken in")
    place, home = location.resolve(), collection.resolve()
    inside = place.is_relative_to(home)
    path = (place.relative_to(home) if inside else place).as_posix()
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the path {path!r} is no valid Unicode and cannot be referenced: pack the images") from error
    settled = 0 < found.st_mtime_ns < began_ns - CLOCK_SLACK_NS
    return Reference(path, found.st_mtime_ns if settled else 0)


def read_reference(
    path: str, *, collection: Path, length: int, mtime_ns: int, sha256: str, verify: bool = False
) -> bytes:
    """The bytes of a referenced image; with `verify` its SHA-256 is compared even where length and time agree.

    Raises BadImage: "missing file", "changed file", or "unreadable" (permissions, a broken disk).
    """
    place = collection / path
    try:
        # A pipe that took the file's place would block an ordinary open for ever.
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise BadImage("changed file", f"{place} is no regular file any more")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(length + 1) if found.st_size == length else b""
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadImage("missing file", f"{place} is missing: it was moved or deleted") from error
    except OSError as error:
        raise BadImage("unreadable", f"{place} cannot be read: {error.strerror or error}") from error
    same = len(data) == length and found.st_size == length
    if same and (verify or mtime_ns == 0 or found.st_mtime_ns != mtime_ns):
        same = hashlib.sha256(data).hexdigest() == sha256
    if not same:
        raise BadImage("changed file", f"{place} is not the image that was taken in: its bytes changed")
    return data
