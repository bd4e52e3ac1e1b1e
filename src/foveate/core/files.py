"""Atomic files (temporary file, fsync, rename) and a lock for one writer per folder."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from foveate.core.errors import UserError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_IS_WINDOWS = os.name == "nt"
_READING = threading.Lock()


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's renames and deletions, to the disk."""
    # Windows opens no folder, and NTFS writes names to its own journal.
    if _IS_WINDOWS and path.is_dir():
        return
    # Read-only is enough for fsync, and the only way to open a folder; Windows flushes only what may be written.
    descriptor = os.open(path, os.O_RDWR if _IS_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_descriptor(path: str | Path) -> int:
    """Open a file for `read_at`; the caller closes the descriptor."""
    # Windows would turn line ends of a file into others, and end it at a Ctrl-Z.
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Read up to `length` bytes at an offset of a file that several threads may read; fewer at its end."""
    if hasattr(os, "pread"):
        # It has no file position that threads would share.
        return os.pread(descriptor, length, offset)
    with _READING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def commit_atomically(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file or folder to `path`, durably; both are on one file system."""
    # Content before name: after a power cut the new name must not point to an empty file.
    if temporary.is_file():
        fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Add the file name `path` to an OSError of the block that has none, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that appears at `path` on a clean exit; an exception leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name per writer: if two write the same path at once, the last rename wins.
    temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}.tmp")
    try:
        with name_in_errors(path):
            with temporary.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove temporary files that a killed writer of `path` left; call it only as the single writer."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old content or the new, never a part."""
    with atomic_file(path) as handle:
        handle.write(data)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; raise ValueError for NaN and infinity."""
    # NaN is not JSON: browsers and other programs could not read a file with it.
    write_text_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: also bytes that are not UTF-8, numbers of thousands of digits, endless nesting.
        raise UserError(f"{path}: not a JSON file ({error})") from error


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append rows to a file of JSON Lines."""
    with name_in_errors(path), path.open("a", encoding="utf-8") as handle:
        handle.write("".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """Read the rows of a file of JSON Lines up to the first line that is not JSON, such as one that a kill cut off.

    There are none if there is no file.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def repair_json_lines(path: Path) -> list[Any]:
    """Read the rows of a file of JSON Lines as `read_json_lines` does, and write it anew with these alone."""
    rows = read_json_lines(path)
    # Appending to a line that was cut would join two rows in one.
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    # Loaded here, for every start of the command line imports this module.
    import hashlib

    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Return the hexadecimal SHA-256 over names and contents of all files below a folder."""
    import hashlib

    # Sorted, and named with forward slashes below, so that the hash is the same on every file system.
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


LOCK_FILES = ("writer.lock", "writer.owner")
"""What `FolderLock` leaves in a folder: the lock, and who holds it."""


def file_lock(path: Path, *, waits: bool = True, mode: int | None = None) -> BaseFileLock:
    """Return a lock of a file, for a `with` block: for one process, and one thread of it, at a time.

    The system frees it when its owner ends, even by kill -9. A lock file holds nothing, since on Windows nobody can
    read a locked file.

    Args:
        path: of the lock file, which is created.
        waits: until the lock is free; otherwise `filelock.Timeout` is raised.
        mode: permissions of a new file; otherwise the umask decides, as for the files beside it.
    """
    # Loaded here, for every start of the command line imports this module.
    from filelock import FileLock

    timeout = -1 if waits else 0
    # Not the thread's own: a lock may be freed by another thread than took it.
    if mode is None:
        return FileLock(path, timeout=timeout, thread_local=False)
    return FileLock(path, timeout=timeout, mode=mode, thread_local=False)


class FolderLock:
    """Lock a folder for one writer at a time.

    Args:
        purpose: what the owner does, for the error that a second writer gets.
    """

    def __init__(self, folder: Path, *, purpose: str) -> None:
        self.path, self._owner = (folder / name for name in LOCK_FILES)
        self.purpose = purpose
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> FolderLock:
        from filelock import Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = file_lock(self.path, waits=False)
        try:
            lock.acquire()
        except Timeout:
            owner = ""
            # Between its lock and its name, or on its way out, the owner has no file.
            with contextlib.suppress(OSError):
                owner = self._owner.read_text(encoding="utf-8").strip()
            owner = owner or "another process"
            raise UserError(
                f"{self.path.parent} is being written by {owner}; wait for it to finish, or stop it"
            ) from None
        try:
            name = f"process {os.getpid()} on {platform.node()} ({self.purpose})\n"
            self._owner.write_text(name, encoding="utf-8")
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        # The folder may be gone by now; on Windows a process that was refused may be reading the name.
        with contextlib.suppress(OSError):
            self._owner.unlink()
        self._lock.release()
        self._lock = None
