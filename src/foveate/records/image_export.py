"""What exporters of collections share: the selected images, safe and unique file names, classes and counts.

Boxes of regions are relative to the image after EXIF rotation. The files keep their bytes and so their EXIF tag, which
every program that we export for heeds.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.records.collection import Collection
from foveate.records.images import SUFFIXES, BadImage
from foveate.records.record import Region
from foveate.records.region_sources import OWN_SOURCES, SelectedRegions

UNLABELED = "object"
"""Class of regions without label."""
UNASSIGNED = "unassigned"
"""Split of images that have none, in a collection where others have one."""
_MAX_STEM_BYTES = 150  # file systems allow 255, and programs add endings of their own
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # device names of Windows


@dataclass(slots=True)
class ExportSummary:
    """Counts of an export, images that could not be read with the reason, and sentences for the user."""

    images: int = 0
    regions: int = 0
    captions: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def select_rows(collection: Collection, rows: Iterable[int] | None) -> list[int]:
    """Return the rows of an export, all by default; raise UserError if there are none."""
    selected = list(range(len(collection))) if rows is None else [int(row) for row in rows]
    if not selected:
        raise UserError(f"nothing to export: no image of the collection {collection.name!r} is selected")
    return selected


def make_unique_names(texts: Iterable[str], *, keep: str = "") -> list[str]:
    """Return a file name without ending for each of several different texts.

    Names have letters, digits, "_" and the characters of `keep`; other characters become "_". A later name that equals
    an earlier one on a file system without case gets the beginning of its text's hash.

    Example:
        >>> make_unique_names(["a/b.1", "a_b.1", "../up"], keep=".")
        ['a_b.1', 'a_b.1_94dcbe3b', 'up']
    """
    taken: set[str] = set()
    names = []
    for text in texts:
        name = re.sub(rf"[^\w{re.escape(keep)}]+", "_", unicodedata.normalize("NFC", text))
        # No leading dot, which hides a file, and no hyphen, which programs take for an option.
        name = name.encode()[:_MAX_STEM_BYTES].decode(errors="ignore").strip(".-").removeprefix("_") or "_"
        name = f"_{name}" if _RESERVED.fullmatch(name) else name
        digest = hashlib.sha256(text.encode()).hexdigest()
        plain, length = name, 8
        while unicodedata.normalize("NFC", name.casefold()) in taken:
            name, length = f"{plain}_{digest[:length]}", length + 8
        taken.add(unicodedata.normalize("NFC", name.casefold()))
        names.append(name)
    return names


class ImageExport:
    """The images of one export with their regions; `summary` counts what was read.

    Args:
        rows: all rows of the collection by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: no image is selected, or no region has a source.
    """

    def __init__(
        self, collection: Collection, rows: Iterable[int] | None, region_sources: Sequence[str] = (OWN_SOURCES,)
    ) -> None:
        self.collection = collection
        self.rows = select_rows(collection, rows)
        self.summary = ExportSummary()
        self._regions = SelectedRegions(collection, region_sources)

    @cached_property
    def classes(self) -> list[str]:
        """Class names: those of an imported COCO file in the order of their ids, then other labels, sorted.

        They are those of all rows, so that exports of single splits number their classes alike.
        """
        categories = self.collection.dataset_table("coco_categories").to_pylist()
        imported = [row["name"] for row in sorted(categories, key=lambda row: row["category_id"])]
        labels = sorted(label or UNLABELED for label in self._regions.labels())
        return list(dict.fromkeys([*imported, *labels]))

    @cached_property
    def _class_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @cached_property
    def file_names(self) -> list[str]:
        """File name of each row of the collection, from its key, without folders."""
        # Of all rows: an image has the same name in the exports of all splits.
        stems = make_unique_names(self.collection.keys, keep=".-")
        formats = self.collection.index["format"]
        return [f"{stem}.{SUFFIXES[format]}" for stem, format in zip(stems, formats, strict=True)]

    def find_class(self, region: Region) -> int:
        """Return the position of a region's label in `classes`."""
        return self._class_numbers[region.label or UNLABELED]

    def size(self, row: int) -> tuple[int, int]:
        """Return width and height of an image in pixels, after EXIF rotation."""
        return int(self.collection.index["width"][row]), int(self.collection.index["height"][row])

    def rows_by_split(self) -> dict[str, list[int]]:
        """Return the selected rows of each split; in a collection without splits all are "train"."""
        splits = self.collection.splits
        missing = UNASSIGNED if any(splits) else "train"
        grouped: dict[str, list[int]] = {}
        for row in self.rows:
            grouped.setdefault(splits[row] or missing, []).append(row)
        return grouped

    def read_regions(self, row: int) -> list[Region]:
        """Return the selected regions of an image, and count them."""
        regions = self._regions.read(row)
        self.summary.regions += len(regions)
        return regions

    def read_images(self, rows: Iterable[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield rows with the bytes of their images; those that cannot be read are noted in the summary."""
        selected = self.rows if rows is None else list(rows)
        for row in track(selected, description="exporting images"):
            try:
                data = self.collection.image_bytes(row)
            except BadImage as error:
                self.summary.unreadable[self.collection.keys[row]] = str(error)
                continue
            self.summary.images += 1
            yield row, data

    def copy_images(self, folder: Path, rows: Iterable[int] | None = None) -> Iterator[tuple[int, str]]:
        """Copy images into a folder under their `file_names`; yield the rows and names of those that were copied."""
        folder.mkdir(parents=True, exist_ok=True)
        for row, data in self.read_images(rows):
            name = self.file_names[row]
            (folder / name).write_bytes(data)
            yield row, name

    def finish(self) -> ExportSummary:
        """Return the summary; raise UserError if not one image could be read."""
        if not self.summary.images:
            key, reason = next(iter(self.summary.unreadable.items()))
            raise UserError(f"nothing to export: none of {len(self.rows)} images can be read; {key}: {reason}")
        return self.summary
