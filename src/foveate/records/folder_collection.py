"""A plain folder of images as a collection that only refers to them, brought up to date whenever it is used."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import get_suffix, list_files
from foveate.records.importers.folder import import_folder
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """Counts of a folder against its collection.

    Attributes:
        images: that can be read. new, changed, gone: files since the last time.
        unreadable: reason -> images that were left out; `quarantine.parquet` of the collection names them.
    """

    images: int
    new: int = 0
    changed: int = 0
    gone: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)

    def format_line(self) -> str:
        """Describe the folder in one line."""
        parts = [f"{self.images:,} images by reference"]
        parts += [
            f"{count:,} {name}"
            for name, count in (("new", self.new), ("changed", self.changed), ("gone", self.gone))
            if count
        ]
        if self.unreadable:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.unreadable.items()))
            parts.append(f"{sum(self.unreadable.values()):,} unreadable ({reasons})")
        return ", ".join(parts)


def check_images(folder: Path, target: Path) -> None:
    """Raise UserError if no file below a folder is named like an image."""
    if not _list_images(folder, target):
        raise UserError(f"{folder}: has no images; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")


def refer_to_folder(folder: Path, target: Path, *, workers: int | None = None) -> FolderChanges:
    """Make or update the collection `target` that refers to the images of `folder`; return what changed.

    Nothing is copied and the folder is not written. Where files changed or are gone, the collection is built again:
    it is derived from the folder, and nobody else writes it.

    Raises:
        UserError: `folder` has no images, or `target` refers to another folder.
    """
    name = folder.resolve().name
    if not (target / layout.DESCRIPTION).is_file():
        summary = import_folder(folder, target, reference=True, name=name, workers=workers)
        return _count(target, summary, new=summary.imported)
    with Collection.open(target) as collection:
        known = {str(path): row for row, path in enumerate(collection.index["path"].tolist())}
        root = folder.resolve()
        outside = next((path for path in known if not Path(path).is_relative_to(root)), None)
        if outside is not None:
            raise UserError(f"{target}: refers to images of another folder, such as {outside}; expected {root}")
        present = _list_images(folder, target)
        gone = len(known.keys() - present.keys())
        common = [(known[path], status) for path, status in present.items() if path in known]
        changed = sum(_has_changed(collection, row, status) for row, status in common)
        stale = changed or gone or _has_newer_sidecar(folder, target)
    if not stale:
        if not present.keys() - known.keys():
            return FolderChanges(images=len(known))
        summary = import_folder(folder, target, reference=True, name=name, workers=workers)
        return _count(target, summary, new=summary.imported)
    fresh = target.with_name(f"{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    summary = import_folder(folder, fresh, reference=True, name=name, workers=workers)
    # Between the two steps there is no collection: a kill there makes the next run import again.
    shutil.rmtree(target)
    fresh.rename(target)
    return _count(target, summary, new=max(0, summary.imported - len(known) + gone), changed=changed, gone=gone)


def _count(target: Path, summary: ImportSummary, *, new: int, changed: int = 0, gone: int = 0) -> FolderChanges:
    bad = {
        name.removeprefix("image: "): count for name, count in summary.quarantined.items() if name.startswith("image: ")
    }
    with Collection.open(target) as collection:
        return FolderChanges(len(collection), new, changed, gone, bad)


def _list_images(folder: Path, target: Path) -> dict[str, os.stat_result]:
    """Return path -> status of the image files below a folder, links resolved as references are."""
    files, _ = list_files(folder, target)
    images = [path for path in files if get_suffix(path) in IMAGE_SUFFIXES | REFUSED_SUFFIXES]
    return {path.resolve().as_posix(): path.stat() for path in images if path.is_file()}


def _has_changed(collection: Collection, row: int, status: os.stat_result) -> bool:
    """Tell whether a file has other bytes; a copied or touched one has only another time."""
    columns = collection.index
    if int(columns["length"][row]) != status.st_size:
        return True
    if int(columns["mtime_ns"][row]) == status.st_mtime_ns:
        return False
    try:
        data = Path(str(columns["path"][row])).read_bytes()
    except OSError:
        return True
    return hashlib.sha256(data).hexdigest() != columns["sha256"][row]


def _has_newer_sidecar(folder: Path, target: Path) -> bool:
    """Tell whether a text was written after the collection: captions come from these files alone."""
    imported_ns = (target / layout.DESCRIPTION).stat().st_mtime_ns
    files, _ = list_files(folder, target)
    sidecars = [path for path in files if get_suffix(path) in ("txt", "json") and path.is_file()]
    return any(path.stat().st_mtime_ns > imported_ns for path in sidecars)
