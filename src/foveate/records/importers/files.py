"""Images that lie as plain files: named safely, opened late, and never out of the folder that was given."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from foveate.records.images import BadImage
from foveate.records.importers.sample import MAX_BYTES, Problem, Sample

_LONGEST_PATH = 4096
_LONGEST_NAME = 255


def place_of(name: object, root: Path) -> tuple[str, Path] | Problem:
    """Where the image that a file calls `name` lies below the folder `root`: (name below it, path).

    Names written on Windows, with backslashes, are understood. A name that is absolute may lead into the
    folder; one that leads out of it is refused, as are addresses. Nothing is opened.
    """
    if not isinstance(name, str) or not name.strip():
        return Problem("image", "no file name", f"a file name is wanted, not {str(name)[:40]!r}")
    shown = name if len(name) <= 120 else f"{name[:120]}..."
    if "://" in name:
        return Problem("image", "address, no file", f"{shown!r} is an address: images are not downloaded")
    if "\0" in name or len(name) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in _bytes_of(name)):
        return Problem("image", "no file name", f"{shown!r} cannot be the name of a file")
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name.strip().replace("\\", "/")))
    below = os.path.relpath(path, base)
    if below == "." or below.split(os.sep)[0] == "..":
        return Problem("image", "path leaves the folder", f"{shown!r} does not lead into the folder of the images")
    return below, root / below


def _bytes_of(name: str) -> list[bytes]:
    """The parts of a path as a file system has them; half a surrogate pair makes one that is too long for it."""
    try:
        return name.replace("\\", "/").encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return [bytes(_LONGEST_NAME + 1)]


def key_of(name: str) -> str:
    """The key of an image's file name: without its ending."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, PurePosixPath(file).stem)


def folder_of(key: str) -> str:
    """The folder part of a key, or ""."""
    return posixpath.dirname(key)


def file_sample(name: object, root: Path, *, source: str) -> Sample:
    """A sample for the file that is called `name` below `root`, or one that only tells what is wrong with it."""
    place = place_of(name, root)
    if isinstance(place, Problem):
        return Sample(key=str(name)[:400], source=source, load=None, problems=[place], only_problems=True)
    below, path = place
    sample = Sample(key=key_of(below), source=source, load=read_later(path), location=path)
    problem = refused(path, root.resolve())
    if not os.path.lexists(path):
        problem = Problem("image", "no image", f"there is no file {below!r} in the folder of the images")
    if problem is not None:
        sample.load = refuse_later(problem)
    return sample


def refused(path: Path, root: Path) -> Problem | None:
    """Why a file is not even opened: a link out of the folder, or a pipe, socket or device."""
    try:
        if not path.resolve().is_relative_to(root):
            return Problem("image", "link leaves the folder", "the symbolic link leads out of the imported folder")
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        detail = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        return Problem("image", "unreadable", detail)
    if not stat.S_ISREG(mode):
        return Problem("image", "no regular file", "the path is a folder, pipe, socket or device")
    return None


def read_later(path: Path) -> Callable[[], bytes]:
    """A function that reads the file, but not much more than the bytes that are allowed."""

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)

    return read


def refuse_later(problem: Problem) -> Callable[[], bytes]:
    """A function that raises the problem where the image's bytes are asked for."""

    def refuse() -> bytes:
        raise BadImage(problem.reason, problem.detail)

    return refuse
