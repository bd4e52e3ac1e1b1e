"""Read objects and their fields from JSON and JSON Lines; errors name the file, the line and the field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.text_tables import iterate_json_lines


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError if the file is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(content).__name__})")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON Lines without its blank ones; raise UserError with the number of a line that is no object."""
    entries = []
    for number, entry in iterate_json_lines(path):
        if isinstance(entry, ValueError):
            raise UserError(f"{path}, line {number}: not JSON ({entry})") from entry
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {number}: expected an object (got {type(entry).__name__})")
        entries.append(entry)
    return entries


def get_field(entry: Mapping[str, Any], name: str, kind: type, *, where: str) -> Any:
    """Return a field of an entry; raise UserError if it is absent or of another type."""
    value = entry.get(name)
    # True is an int to Python, but no number in JSON.
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        raise UserError(f"{where}: field '{name}' must be of type {kind.__name__} (got {value!r:.60})")
    return value
