"""Read large JSON annotation files without parts that are not needed, and check their entries one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from foveate.core.errors import UserError, nearest
from foveate.records.importers.files import locate_file
from foveate.records.importers.sample import Problem, Sample

MAX_ID = 2**63 - 1  # ids are stored as 64-bit integers


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
