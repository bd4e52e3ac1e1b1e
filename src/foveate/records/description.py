"""What a collection says of itself in collection.json, as its writer begins it, opens it and brings it up to date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.records import layout
from foveate.records.collection import check_description, check_writable


def refuse_foreign_folder(path: Path) -> None:
    """Raises UserError where `path` is a file, or a folder that holds something else."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: a collection is a folder")
    if not path.is_dir() or (path / layout.DESCRIPTION).is_file():
        return
    others = [entry.name for entry in path.iterdir()]
    others = sorted(name for name in others if name != layout.LOCK_FILE and not name.endswith(".tmp"))
    if others:
        found = f"holds other files ({others[0]!r}) and no {layout.DESCRIPTION}"
        raise UserError(f"{path} {found}: choose a new folder")


def opened(
    path: Path, *, name: str | None, license: str | None, images_per_shard: int, bytes_per_shard: int
) -> dict[str, Any]:
    """The description of the collection that is there, or that of a new one, which is written.

    Args:
        name: of a new collection, by default the folder's; else it must be the one that the collection has.
        license, images_per_shard, bytes_per_shard: of a new collection.

    Raises:
        UserError: for another name, and for a collection that this release cannot write.
    """
    place = path / layout.DESCRIPTION
    if not place.is_file():
        description: dict[str, Any] = {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "name": name or path.resolve().name,
            "license": license or "unknown",
            "sources": [],
            "images": 0,
            "shards": 0,
            "images_per_shard": images_per_shard,
            "bytes_per_shard": bytes_per_shard,
        }
        write_json_atomically(place, description)
        return description
    description = read_json(place)
    check_description(path, description)
    check_writable(path, description)
    if description["version"] < layout.VERSION:
        # Before anything is written that an older release would misread.
        description = {**description, "version": layout.VERSION}
        write_json_atomically(place, description)
    if name is not None and name != description["name"]:
        raise UserError(f"{place}: field 'name' is {description['name']!r}, not {name!r}")
    return description


def counted(
    path: Path, description: dict[str, Any], *, counts: Mapping[str, int], entry: Mapping[str, str]
) -> dict[str, Any]:
    """The description with new counts, and with a source and its license where they are new; written if it differs."""
    sources = list(description["sources"])
    if entry["source"] and entry not in sources:
        sources.append(dict(entry))
    updated = {**description, **counts, "sources": sources}
    if updated != description:
        write_json_atomically(path / layout.DESCRIPTION, updated)
    return updated
