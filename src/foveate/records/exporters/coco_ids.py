"""Ids of an exported COCO file: those that images, boxes and categories came with, and free ones for the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.images import SUFFIXES
from foveate.records.importers.coco_file import Category, category_of
from foveate.records.importers.files import key_of
from foveate.records.record import Region

# The category of regions that have words but no label.
UNLABELED = "object"
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")


def rows_of(collection: Collection, kind: str, row: int) -> list[dict[str, Any]]:
    """The rows of one image in a table that may not be there."""
    if kind not in layout.annotation_kinds(collection.path):
        return []
    grouped = collection.grouped(kind)
    start, end = grouped.bounds(row)
    return grouped.table.slice(start, end - start).to_pylist()


class FreeIds:
    """Gives each entry the id that it came with, if that is not taken, or else the next free one."""

    def __init__(self, collection: Collection, kind: str, column: str) -> None:
        there = kind in layout.annotation_kinds(collection.path)
        largest = pc.call_function("max", [collection.table(kind)[column]]).as_py() if there else None
        self._next = max(largest or 0, 0) + 1
        self._taken: set[int] = set()

    def take(self, known: int | None) -> int:
        """An id that was not given before."""
        if known is None or known in self._taken:
            known, self._next = self._next, self._next + 1
        self._taken.add(known)
        return known


class Names:
    """File names and ids of images."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def file_name(self, row: int) -> str:
        """The name that the image came with, where its key is made of it; else key and ending."""
        key = self.collection.keys[row]
        for known in rows_of(self.collection, "coco_images", row):
            name = str(known.get("file_name"))
            if key_of(name) == key and _ENDING.fullmatch(name[len(key) :]):
                return name
        return f"{key}.{SUFFIXES[self.collection.index['format'][row]]}"

    def image_ids(self, chosen: list[int]) -> dict[int, int]:
        """The id of each chosen row."""
        free = FreeIds(self.collection, "coco_images", "image_id")
        known = {row: rows_of(self.collection, "coco_images", row) for row in chosen}
        return {row: free.take(rows[0]["image_id"] if rows else None) for row, rows in known.items()}


class Categories:
    """The categories of an exported file: those that were imported, with their ids, and one for each new label."""

    def __init__(self, collection: Collection) -> None:
        self._by_number: dict[int, Category] = {}
        self._by_name: dict[str, Category] = {}
        known = [
            category_of(row["category_id"], row) for row in collection.dataset_table("coco_categories").to_pylist()
        ]
        for category in known:
            if self._by_number.setdefault(category.number, category) is category:
                self._by_name.setdefault(category.name, category)
        for category in known:
            if category.name not in self._by_name:
                self._add(category_of(self._free(), category.row))

    def of(self, region: Region, number: int | None) -> Category:
        """The category of a region that came with the category id `number` (None: with none)."""
        name = region.label or UNLABELED
        known = None if number is None else self._by_number.get(number)
        if known is not None and known.name == name:
            return known
        if name not in self._by_name:
            again = number if number is not None and known is None else self._free()
            self._add(category_of(again, {"name": name}))
        return self._by_name[name]

    def entries(self) -> Iterator[dict[str, object]]:
        """The entries of the file's `categories`, by id."""
        for number, category in sorted(self._by_number.items()):
            row = category.row
            entry: dict[str, object] = {"id": number, "name": category.name}
            names = {"supercategory": "supercategory", "synonyms": "synonyms", "definition": "def"}
            names["frequency"] = "frequency"
            yield entry | {field: row[name] for name, field in names.items() if row.get(name)}

    def _free(self) -> int:
        return max([0, *self._by_number]) + 1

    def _add(self, category: Category) -> None:
        self._by_number[category.number] = category
        self._by_name[category.name] = category
