"""Files outside of a collection: those that it refers to, and stamps of those that it was imported from.

A file counts as the imported image if its length and modification time are the recorded ones. If only the time differs,
the SHA-256 decides: a copied or touched file is still read, another image under the same path is refused.

The table `files` of a collection has a row per version of an image's files: a stamp of their names, lengths and times,
and the ids of the annotation rows that were imported with them. The last row of an image holds; rows that only earlier
versions had are outdated, and `Collection.table` leaves them out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import UserError
from foveate.records import layout, tables
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
    # Paths inside the collection are relative, so that they stay valid when the folder is moved.
    path = (file.relative_to(home) if inside else file).as_posix()
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path {path!r} is not valid Unicode and cannot be referenced; rename the file, or copy it with "
            "`foveate collect` without --reference"
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
        # Non-blocking: opening a pipe that took the place of the file would wait for ever. Windows has no such pipes,
        # and would read a file as text.
        descriptor = os.open(target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("changed file", f"{target} is not a regular file any more")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                # One byte more than expected is read, so that a file that grew after `fstat` does not pass as the
                # imported one.
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


KIND = "files"


@dataclass(frozen=True, slots=True)
class FileStamp:
    """The files of one image at one moment.

    Args:
        folder: hash of the imported folder's path.
        file: path of the image below it.
        stamp: hash of names, lengths and times of the image and its sidecars; "" if one cannot be read.
        mtime_ns: the newest of these times.
    """

    folder: str
    file: str
    stamp: str
    mtime_ns: int

    def to_row(self, key: str, ids: Iterable[str], *, version: int = 0) -> dict[str, object]:
        """Return the row of the table `files`; `ids` name annotation rows as "captions/0123456789abcdef"."""
        content = {"folder": self.folder, "file": self.file, "stamp": self.stamp, "mtime_ns": self.mtime_ns}
        return {"key": key, **content, "version": version, "rows": sorted(ids)}


@dataclass(frozen=True, slots=True)
class StampedImage:
    """The last version of an image's files in a collection; `settled`: no write can have kept its time."""

    stamp: FileStamp
    version: int
    settled: bool


def hash_text(*parts: object) -> str:
    """Return 16 hexadecimal digits that differ for different parts."""
    # Joined by NUL, which no file name has, so that ("a", "bc") and ("ab", "c") differ.
    text = "\0".join(map(str, parts))
    # File names need not be UTF-8; Python represents their other bytes as lone surrogates.
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def stamp_files(folder: str, source: str, names: Sequence[str], *options: object) -> FileStamp:
    """Stamp an image and its sidecars.

    Args:
        folder: see `FileStamp`.
        source: path of the folder.
        names: paths below it of the image and its sidecars, the image first.
        options: what else decides which rows an import makes of them.
    """
    parts: list[object] = [*options]
    newest = 0
    for name in names:
        try:
            status = os.stat(f"{source}/{name}")
        except OSError:
            # Without a stamp the version never counts as settled: the next import reads the files again.
            return FileStamp(folder, names[0], "", 0)
        parts += [name, status.st_size, status.st_mtime_ns]
        newest = max(newest, status.st_mtime_ns)
    return FileStamp(folder, names[0], hash_text(*parts), newest)


def list_ids(rows: Mapping[str, Iterable[Mapping[str, object]]]) -> list[str]:
    """Return "kind/id" of finished annotation rows by kind."""
    return [f"{kind}/{row[tables.id_column(kind)]}" for kind, of_kind in rows.items() for row in of_kind]


class FileStamps:
    """The last version of each image's files in a collection."""

    def __init__(self, collection: Path) -> None:
        parts = layout.annotation_parts(collection, KIND, set(layout.committed_shards(collection)))
        self._table = tables.read_annotations(parts, KIND)
        # Parts are read in the order of writing, so the last row of a key is its newest version.
        self._last = {key: row for row, key in enumerate(self._table["key"].to_pylist())}
        names = ("folder", "file", "stamp", "mtime_ns", "version", "created")
        self._columns = {name: self._table[name].to_pylist() for name in names}
        # An import gives one time to all its rows, so few texts are parsed.
        self._created_ns = {text: _to_ns(text) for text in set(self._columns["created"])}

    def __len__(self) -> int:
        return len(self._last)

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def get(self, key: str) -> StampedImage | None:
        """Return the last version of an image's files; None if no import of a folder added it."""
        row = self._last.get(key)
        if row is None:
            return None
        columns = self._columns
        folder, file, stamp = columns["folder"][row], columns["file"][row], columns["stamp"][row]
        mtime_ns, version, created = columns["mtime_ns"][row], columns["version"][row], columns["created"][row]
        # A file written within a tick of the clock after it was read could have the same time, as in Git's index.
        settled = bool(stamp) and mtime_ns < self._created_ns[created] - CLOCK_SLACK_NS
        return StampedImage(FileStamp(folder, file, stamp, mtime_ns), version, settled)

    def is_unchanged(self, key: str, stamp: FileStamp) -> bool:
        """Whether a stamp is that of the last version, and no write can have kept its time."""
        row = self._last.get(key)
        # Most images of a repeated import end here.
        if row is None or self._columns["stamp"][row] != stamp.stamp:
            return False
        recorded = self.get(key)
        return recorded is not None and recorded.settled and recorded.stamp == stamp

    def ids(self, key: str) -> list[str]:
        """Return the ids of the annotation rows of the last version, as "kind/id"."""
        return self._table["rows"][self._last[key]].as_py() or []

    def keys_by_file(self, folder: str) -> dict[str, str]:
        """Return path below a folder -> key of its images."""
        folders, files = self._columns["folder"], self._columns["file"]
        return {files[row]: key for key, row in self._last.items() if folders[row] == folder}

    def list_gone(self, folder: str, present: Container[str]) -> list[str]:
        """Return the keys of a folder's images whose files are not `present`."""
        return [key for file, key in self.keys_by_file(folder).items() if file not in present]


def find_outdated(parts: Iterable[Path]) -> dict[str, pa.Array]:
    """Return kind -> ids of annotation rows that only earlier versions of an image's files had.

    Args:
        parts: of the table `files`, in the order of writing.
    """
    paths = list(parts)
    # Newer versions are only written to parts of their own: without one nothing is outdated.
    added = [path for path in paths if layout.is_added(path)]
    if not added:
        return {}
    changed = pc.call_function("unique", [tables.read_annotations(added, KIND)["key"].combine_chunks()])
    table = tables.read_annotations(paths, KIND).select(["key", "rows"])
    # Only images with a newer version can have outdated rows; the others stay in Arrow and cost no Python objects.
    table = table.filter(pa.array(np.asarray(tables.positions(table["key"], among=changed) >= 0)))
    all_ids: dict[str, set[str]] = {}
    last: dict[str, set[str]] = {}
    for key, ids in zip(table["key"].to_pylist(), table["rows"].to_pylist(), strict=True):
        last[key] = set(ids or ())
        all_ids.setdefault(key, set()).update(last[key])
    outdated: dict[str, list[str]] = {}
    for key, ids in all_ids.items():
        for name in ids - last[key]:
            kind, _, row_id = name.partition("/")
            outdated.setdefault(kind, []).append(row_id)
    return {kind: pa.array(sorted(ids), pa.string()) for kind, ids in outdated.items()}


def _to_ns(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 10**9
    except ValueError:
        # With a damaged time no version counts as settled, and its files are read again.
        return 0
