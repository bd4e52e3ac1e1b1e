"""Files that are either whole or absent: temporary file, fsync, rename; and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from foveate.core.errors import UserError


def fsync_folder(folder: Path) -> None:
    """Makes what was renamed or deleted in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_atomically(temporary: Path, path: Path) -> None:
    """Makes a finished temporary file (or folder) of the same file system appear at `path`, durably."""
    if temporary.is_file():
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
    os.replace(temporary, path)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write; on a clean exit it appears at `path`, on an exception nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        # A write to a full disk does not say by itself which file it was.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Removes temporary files that a killed writer of `path` left; for who alone writes it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`: readers see the old content or the new, never a part."""
    with atomic_file(path) as handle:
        handle.write(data)


def write_text_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinities are refused."""
    write_text_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        UserError: when the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        # Beside JSON's own errors: bytes that are no UTF-8, numbers of thousands of digits, nesting without end.
        raise UserError(f"{path}: not a JSON file ({error})") from error


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class FolderLock:
    """One writer of a folder at a time. The kernel frees the lock when its owner ends, however it ends."""

    def __init__(self, folder: Path, *, purpose: str) -> None:
        self.path = folder / "writer.lock"
        self.purpose = purpose
        self._handle: Any = None

    def __enter__(self) -> FolderLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise UserError(
                f"{self.path.parent}: is being written by {owner}; wait until it has finished or stop it"
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()} ({self.purpose})\n")
        handle.flush()
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.seek(0)
        self._handle.truncate()
        self._handle.close()
        self._handle = None
