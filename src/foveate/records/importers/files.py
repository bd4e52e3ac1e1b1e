"""Image files and JSON files of a source: safe names, opened late, never outside of the given folder."""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from foveate.core.errors import UserError, nearest
from foveate.records.images import BadImage
from foveate.records.importers.sample import MAX_BYTES, Problem, Sample

# Limits of Linux; longer names would raise an OSError in the middle of an import.
_MAX_PATH_LENGTH = 4096
_MAX_NAME_BYTES = 255
# Folders at the top of a disk that hold no images of the user and are often unreadable.
_SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


def locate_file(name: object, root: Path) -> tuple[str, Path] | Problem:
    """Locate an image by its name in an annotation file: return (name below `root`, path), or the problem.

    Backslashes of Windows are understood. An absolute name may lead into the folder; URLs and names that lead out of
    the folder are refused. Nothing is opened.
    """
    if not isinstance(name, str) or not name.strip():
        return Problem("image", "no file name", f"expected a file name (got {str(name)[:40]!r})")
    shortened = name if len(name) <= 120 else f"{name[:120]}..."
    if "://" in name:
        return Problem("image", "address, no file", f"{shortened!r} is a URL; images are not downloaded")
    if "\0" in name or len(name) > _MAX_PATH_LENGTH or any(len(part) > _MAX_NAME_BYTES for part in _encode_parts(name)):
        return Problem("image", "no file name", f"{shortened!r} is not a possible file name")
    # Compare paths as text: resolving links would touch files that the name has no right to.
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name.strip().replace("\\", "/")))
    below = os.path.relpath(path, base)
    if below == "." or below.split(os.sep)[0] == "..":
        return Problem("image", "path leaves the folder", f"{shortened!r} leads out of the folder of images")
    return below, root / below


def _encode_parts(name: str) -> list[bytes]:
    """Split a path into encoded parts; half a surrogate pair gives a part that is too long to pass."""
    try:
        return name.replace("\\", "/").encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return [bytes(_MAX_NAME_BYTES + 1)]


def make_key(name: str) -> str:
    """Make the key of an image from its file name: the name without extension."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, PurePosixPath(file).stem)


def file_sample(name: object, root: Path, *, source: str) -> Sample:
    """Make the sample of the file `name` below `root`; if it is unusable, one that only reports the problem."""
    outcome = locate_file(name, root)
    if isinstance(outcome, Problem):
        return Sample(key=str(name)[:400], source=source, load=None, problems=[outcome], only_problems=True)
    below, path = outcome
    sample = Sample(key=make_key(below), source=source, load=make_reader(path), location=path)
    problem = check_file(path, root.resolve())
    # Not `exists`, which is false for a dangling link too: that one keeps the reason from `check_file`.
    if not os.path.lexists(path):
        problem = Problem("image", "no image", f"there is no file {below!r} in the folder of images")
    if problem is not None:
        sample.load = make_refusal(problem)
    return sample


def check_file(path: Path, root: Path) -> Problem | None:
    """Return why a file must not be opened (a link out of the folder, a pipe, socket or device), or None."""
    try:
        # Through a link, any file of the machine would be copied into the collection.
        if not path.resolve().is_relative_to(root):
            return Problem("image", "link leaves the folder", "the symbolic link leads out of the imported folder")
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        detail = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        return Problem("image", "unreadable", detail)
    # Reading a pipe or a device would wait, or never end.
    if not stat.S_ISREG(mode):
        return Problem("image", "no regular file", "the path is a folder, pipe, socket or device")
    return None


def make_reader(path: Path) -> Callable[[], bytes]:
    """Return a function that reads the file, at most one byte more than allowed."""

    def read() -> bytes:
        with path.open("rb") as file:
            # One byte more than allowed shows that a file is too large without reading all of it.
            return file.read(MAX_BYTES + 1)

    return read


def make_refusal(problem: Problem) -> Callable[[], bytes]:
    """Return a function that raises the problem as BadImage."""

    def refuse() -> bytes:
        raise BadImage(problem.reason, problem.detail)

    return refuse


def get_suffix(path: Path) -> str:
    """Return the extension of a file in lower case, without the dot."""
    return path.suffix[1:].lower()


def count_kinds(suffixes: Iterable[str], *, hidden: int) -> Counter[str]:
    """Count files by kind (".md", "no extension", "hidden") from their extensions."""
    kinds = Counter(f".{suffix}" if suffix else "no extension" for suffix in suffixes)
    return kinds + Counter({"hidden": hidden})


def list_names(source: Path, target: Path) -> tuple[list[str], list[str], int]:
    """List the paths below `source` of all its files, and of its links to folders, in order; count hidden files.

    Hidden files are left out. Links to folders are not followed.

    Raises:
        UserError: a folder cannot be read; its images would be missing silently.
    """
    # The target may lie inside of the source; its own files are no images to import.
    inside = target.resolve()
    base = os.path.join(source, "")
    names: list[str] = []
    links: list[str] = []
    hidden = 0
    # Use texts: with pathlib listing a folder takes longer than comparing its files with those of an earlier import.
    for folder, subfolders, files in os.walk(source, onerror=_refuse_unreadable):
        subfolders[:] = [
            sub
            for sub in subfolders
            if not sub.startswith(".") and (sub != inside.name or Path(folder, sub).resolve() != inside)
        ]
        # Keys of images have slashes on every system.
        prefix = os.path.join(folder, "")[len(base) :].replace(os.sep, "/")
        links.extend(prefix + sub for sub in subfolders if os.path.islink(os.path.join(folder, sub)))
        visible = [file for file in files if not file.startswith(".")]
        hidden += len(files) - len(visible)
        names.extend(prefix + file for file in visible)
    return sorted(names, key=os.fsencode), sorted(links, key=os.fsencode), hidden


def _refuse_unreadable(error: OSError) -> None:
    if os.path.basename(error.filename) not in _SYSTEM_FOLDERS:
        raise UserError(
            f"the folder {error.filename} cannot be read ({error.strerror}); check its permissions"
        ) from error


_HEAD_BYTES = 65536  # files of millions of images are gigabytes
MAX_ID = 2**63 - 1  # ids are stored as 64-bit integers


def read_head(source: str, *suffixes: str) -> bytes:
    """Return the first bytes of a file with one of the suffixes, enough to identify it, or nothing."""
    path = Path(source)
    if path.suffix.lower() not in suffixes or not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def read_annotations(path: Path, reduce: Callable[[dict[str, Any]], object] | None = None) -> Any:
    """Read a JSON file.

    Args:
        reduce: called with every object as soon as it is parsed; returns what to keep of it. So the outlines of COCO,
            most of a file, are never in memory together.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is not JSON (truncated, for example).
    """
    try:
        # "-sig": some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(text, object_hook=reduce)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for an annotation file") from error
    except ValueError as error:
        cut = " (empty or truncated)" if len(text.strip()) < 2 or text.rstrip()[-1] not in "]}" else ""
        raise UserError(f"{path} cannot be read as JSON{cut} ({str(error)[:120]})") from error


def get_list(content: object, name: str, path: Path) -> list[Any]:
    """Return the list in field `name` of a file's object; raise UserError if it is missing or not a list."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected an object with the field {name!r} (got {type(content).__name__})")
    if name not in content:
        raise UserError(f"{path}: field {name!r} is missing{nearest(name, map(str, content))}")
    if not isinstance(content[name], list):
        raise UserError(f"{path}: field {name!r} must be a list (got {type(content[name]).__name__})")
    return content[name]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number that a float holds: JSON's integers have any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def get_integer(entry: Mapping[str, Any], name: str) -> int | None:
    """Return a 64-bit integer from a field, or None."""
    value = entry.get(name)
    # JSON's true is an integer for Python.
    usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_ID
    return value if usable else None


def get_stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (width, height) as stated in the file, or None if missing or not positive."""
    width, height = get_integer(entry, "width"), get_integer(entry, "height")
    return (width, height) if width and height and min(width, height) > 0 else None


def make_finding(key: str, source: str, subject: str, reason: str, detail: str, position: int = -1) -> Sample:
    """Make a sample without an image that only carries one problem for the quarantine."""
    problem = Problem(subject, reason, detail, position)
    return Sample(key=key, source=source, load=None, problems=[problem], only_problems=True)


def find_image_folder(
    names: Iterable[list[object]], candidates: Iterable[Path], *, source: Path, requested: Path | None
) -> Path:
    """Find the first of the `candidates` (or only the `requested` folder) that has one of the images.

    Args:
        names: the possible names of each image.
        requested: the folder of --images.

    Raises:
        UserError: no folder has an image.
    """
    if requested is not None and not requested.is_dir():
        raise UserError(f"--images: {requested} is not a folder")
    tried = [requested] if requested is not None else list(dict.fromkeys(path for path in candidates if path.is_dir()))
    listed = list(names)
    for folder in tried:
        locations = (locate_file(name, folder) for options in listed for name in options)
        if any(not isinstance(location, Problem) and location[1].is_file() for location in locations):
            return folder
    searched = ", ".join(map(str, tried))
    raise UserError(f"none of the {len(listed)} images of {source} is in {searched}; give their folder with --images")
