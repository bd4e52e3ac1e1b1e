"""Annotation files: large JSON files read without what is not wanted of them, their parts checked one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.records.importers.files import place_of
from foveate.records.importers.sample import Problem, Sample

LARGEST_ID = 2**63 - 1


def read_annotations(path: Path, kept: Callable[[dict[str, Any]], object] | None = None) -> Any:
    """The JSON value of a file. `kept` is called with every object as soon as it is read, and gives what is
    kept of it, so that outlines and the like are never all in memory.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or is no JSON (cut short, for example).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(text, object_hook=kept)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be an annotation file") from error
    except ValueError as error:
        cut = ": it is empty or cut short" if len(text.strip()) < 2 or text.rstrip()[-1] not in "]}" else ""
        raise UserError(f"{path} cannot be read as JSON{cut} ({str(error)[:120]})") from error


def list_of(content: object, name: str, path: Path) -> list[Any]:
    """The list in the field `name` of a file's object. Raises UserError where it is not there or no list."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: an object with the field {name!r} is wanted, not a {type(content).__name__}")
    if name not in content:
        raise UserError(f"{path}: field {name!r} is missing{nearest(name, map(str, content))}")
    if not isinstance(content[name], list):
        raise UserError(f"{path}: field {name!r} must be a list, not a {type(content[name]).__name__}")
    return content[name]


def whole_number(entry: Mapping[str, Any], name: str) -> int | None:
    """A whole number of 64 bits in a field, or None."""
    value = entry.get(name)
    usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_ID
    return value if usable else None


def stated_size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    """The image's (width, height) as the file states it, or None where it does not, or not sensibly."""
    width, height = whole_number(entry, "width"), whole_number(entry, "height")
    return (width, height) if width and height and min(width, height) > 0 else None


def finding(key: str, source: str, subject: str, reason: str, detail: str, position: int = -1) -> Sample:
    """Something to note at this point of the source, without an image."""
    problem = Problem(subject, reason, detail, position)
    return Sample(key=key, source=source, load=None, problems=[problem], only_problems=True)


def folder_with(names: Iterable[list[object]], candidates: Iterable[Path], *, source: Path, given: Path | None) -> Path:
    """The first of the `candidates` (or the `given` folder alone) that has one of the images.

    `names` are, for each image, the names that it may have. Raises UserError where no folder has any.
    """
    if given is not None and not given.is_dir():
        raise UserError(f"--images: {given} is no folder")
    tried = [given] if given is not None else list(dict.fromkeys(one for one in candidates if one.is_dir()))
    listed = list(names)
    for folder in tried:
        places = (place_of(name, folder) for options in listed for name in options)
        if any(not isinstance(place, Problem) and place[1].is_file() for place in places):
            return folder
    looked = ", ".join(map(str, tried))
    raise UserError(f"none of the {len(listed)} images of {source} is in {looked}: give their folder with --images")
