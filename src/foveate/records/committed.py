"""What a writer finds in a collection folder: the committed parts, and what a killed writer left behind.

An index part and the annotation parts of its images have one number. The tar has the same number, until a purge
writes the part's images to another tar: then the column `shard` of the index part has the tar's number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveate.records import layout, tables
from foveate.records.reference import Reference


@dataclass(slots=True)
class Committed:
    """The committed state: numbers of the index parts, numbers of the tars they use, images and tombstones.

    `known` and `removed` map keys to SHA-256; a tombstoned image whose bytes are still there is in both.
    `referenced` maps the keys of images that stay in their files to the files' paths. `highest` is the highest
    number of a tar that a purge deleted.
    """

    parts: list[int] = field(default_factory=list)
    tars: set[int] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    referenced: dict[str, str] = field(default_factory=dict)
    highest: int = -1

    @property
    def next_number(self) -> int:
        """A number that neither a part nor a tar has or had."""
        return max([*self.parts, *self.tars, self.highest]) + 1


def read_committed(collection: Path) -> Committed:
    """Read the index parts and tombstones. Raises UserError where one of the files is damaged."""
    found = Committed(parts=layout.committed_shards(collection))
    for number in found.parts:
        part = tables.read_index(layout.index_path(collection, number))
        found.highest = max(found.highest, tables.highest_tar(part))
        found.known.update(zip(part["key"].to_pylist(), part["sha256"].to_pylist(), strict=True))
        places = zip(part["key"].to_pylist(), part["shard"].to_pylist(), part["path"].to_pylist(), strict=True)
        for key, shard, path in places:
            if path:
                found.referenced[key] = path
            else:
                found.tars.add(shard)
    removed = tables.read_removed(collection / layout.REMOVED_FILE)
    found.removed = dict(zip(removed["key"].to_pylist(), removed["sha256"].to_pylist(), strict=True))
    return found


def move_references(collection: Path, moved: Mapping[str, Reference]) -> None:
    """Let the index point at the new places of referenced files; each index part is replaced whole."""
    wanted = pa.array(sorted(moved), pa.string())
    for number in layout.committed_shards(collection):
        place = layout.index_path(collection, number)
        part = tables.read_index(place)
        rows = np.flatnonzero(tables.positions(part["key"], among=wanted) >= 0)
        if not len(rows):
            continue
        keys, paths = part["key"].to_pylist(), part["path"].to_pylist()
        mtimes = part["mtime_ns"].to_pylist()
        for row in rows.tolist():
            paths[row], mtimes[row] = moved[keys[row]].path, moved[keys[row]].mtime_ns
        for name, values in (("path", paths), ("mtime_ns", mtimes)):
            column = tables.INDEX.field(name)
            part = part.set_column(part.column_names.index(name), column, pa.array(values, column.type))
        tables.write_table(place, part)


def clear_leftovers(collection: Path, committed: Committed) -> None:
    """Delete temporary files, tars that no index part uses, and annotation parts that have no index part."""
    kinds = layout.annotation_kinds(collection)
    images = collection / "images"
    folders = [collection, images, collection / "index", collection / layout.ABOUT_FOLDER]
    folders += [collection / "annotations" / kind for kind in kinds]
    parts = set(committed.parts)
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            number = int(path.stem) if path.suffix in (".tar", ".parquet") and path.stem.isdigit() else None
            wanted = committed.tars if folder == images else parts
            unused = folder != collection and number is not None and number not in wanted
            if unused or (path.name.startswith(".") and path.name.endswith(".tmp")):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
