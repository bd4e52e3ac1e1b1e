"""A plain folder of images as a collection that only refers to them, brought up to date whenever it is used."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.importers.folder import LINK_TO_IMAGE, import_folder, pair_files
from foveate.records.importers.sample import IMAGE_SUFFIXES
from foveate.records.source_files import KIND as FILES

_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class FolderChanges:
    """Counts of a folder against its collection.

    Attributes:
        images: that can be read. new, changed, gone: files since the last time.
        unreadable: reason -> images that were left out; `quarantine.parquet` of the collection names them.
        left_out: the first of them, each with the reason and what to do about it.
    """

    images: int
    new: int = 0
    changed: int = 0
    gone: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

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
            parts.append(f"{sum(self.unreadable.values()):,} left out ({reasons})")
        return ", ".join(parts)


def check_images(folder: Path, target: Path) -> None:
    """Raise UserError if no file below a folder is named like an image."""
    if not pair_files(folder, target).images:
        raise UserError(f"{folder}: has no images; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")


def refer_to_folder(folder: Path, target: Path, *, workers: int | None = None) -> FolderChanges:
    """Make or update the collection `target` that refers to the images of `folder`; return what changed.

    Nothing is copied and the folder is not written. Only files are read whose length or time changed. Images whose
    files are gone leave no trace: the collection is derived from the folder and has no other writer.

    Raises:
        UserError: `folder` has no images, or `target` refers to another folder.
    """
    if (target / layout.DESCRIPTION).is_file():
        with Collection.open(target) as collection:
            root = folder.resolve()
            paths = collection.index["path"].tolist()
            # Images of another folder would count as gone, and `mirror` would delete them.
            outside = next((path for path in paths if not Path(path).is_relative_to(root)), None)
            if outside is not None:
                raise UserError(f"{target}: refers to images of another folder, such as {outside}; expected {root}")
            unstamped = len(collection) and not collection.table(FILES).num_rows
        if unstamped:
            # This collection dates from before imports recorded their files; it would never follow them.
            shutil.rmtree(target)
    name = folder.resolve().name
    summary = import_folder(
        folder, target, reference=True, update=True, mirror=True, skip_links=True, name=name, workers=workers
    )
    bad = {
        name.removeprefix("image: "): count for name, count in summary.quarantined.items() if name.startswith("image: ")
    }
    with Collection.open(target) as collection:
        return FolderChanges(
            len(collection),
            # A replaced file is imported again, so it is in both counts.
            new=summary.imported - summary.files_replaced,
            changed=summary.files_replaced,
            gone=len(summary.gone),
            unreadable=bad,
            left_out=_list_left_out(collection, folder) if bad else (),
        )


def _list_left_out(collection: Collection, folder: Path) -> tuple[str, ...]:
    """Describe the images that the last import left out, at most as many as a terminal shows."""
    rows = collection.quarantine().to_pylist()
    # Findings are kept: a file that is gone, or was replaced by a good one, is left out no longer.
    used = set(collection.index["path"].tolist())
    details: dict[str, str] = {}
    for row in rows:
        path = folder / row["source"]
        if row["subject"] != "image" or not os.path.lexists(path):
            continue
        # A link to another image leads to a file that is used.
        if path.is_symlink() if row["reason"] == LINK_TO_IMAGE else os.path.realpath(path) not in used:
            details[row["source"]] = row["detail"]
    return tuple(f"{name}: {detail}" for name, detail in list(details.items())[:_MAX_LISTED])
