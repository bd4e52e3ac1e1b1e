"""Ids of an exported COCO file: those of the imported file where there are any, else unused ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.images import SUFFIXES
from foveate.records.importers.coco_file import Category, make_category
from foveate.records.importers.files import make_key
from foveate.records.record import Region

# Category of regions without label.
UNLABELED = "object"
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")


def read_rows(collection: Collection, kind: str, row: int) -> list[dict[str, Any]]:
    """Return the rows of one image in a table that may not exist."""
    if kind not in layout.annotation_kinds(collection.path):
        return []
    grouped = collection.grouped(kind)
    start, end = grouped.bounds(row)
    return grouped.table.slice(start, end - start).to_pylist()


class IdAllocator:
    """Give each entry its imported id if that is unused, else the next unused id."""

    def __init__(self, collection: Collection, kind: str, column: str) -> None:
        exists = kind in layout.annotation_kinds(collection.path)
        largest = pc.call_function("max", [collection.table(kind)[column]]).as_py() if exists else None
        # Above all imported ids: a new entry must not take the id of an imported one that comes later.
        self._next = max(largest or 0, 0) + 1
        self._taken: set[int] = set()

    def take(self, known: int | None) -> int:
        """Return an unused id, `known` if possible."""
        if known is None or known in self._taken:
            known, self._next = self._next, self._next + 1
        self._taken.add(known)
        return known


class ImageNames:
    """File names and ids of images."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def file_name(self, row: int) -> str:
        """Return the imported file name if the key is made of it; else key and extension."""
        key = self.collection.keys[row]
        for known in read_rows(self.collection, "coco_images", row):
            name = str(known.get("file_name"))
            if make_key(name) == key and _ENDING.fullmatch(name[len(key) :]):
                return name
        return f"{key}.{SUFFIXES[self.collection.index['format'][row]]}"

    def image_ids(self, selected: list[int]) -> dict[int, int]:
        """Return the id of each selected row."""
        free = IdAllocator(self.collection, "coco_images", "image_id")
        known = {row: read_rows(self.collection, "coco_images", row) for row in selected}
        return {row: free.take(rows[0]["image_id"] if rows else None) for row, rows in known.items()}


class Categories:
    """Categories of an exported file: imported ones with their ids, and one per new label."""

    def __init__(self, collection: Collection) -> None:
        self._by_number: dict[int, Category] = {}
        self._by_name: dict[str, Category] = {}
        known = [
            make_category(row["category_id"], row) for row in collection.dataset_table("coco_categories").to_pylist()
        ]
        for category in known:
            if self._by_number.setdefault(category.number, category) is category:
                self._by_name.setdefault(category.name, category)
        # Two imported files may use one id for different categories: the first keeps it.
        for category in known:
            if category.name not in self._by_name:
                self._add(make_category(self._free(), category.row))

    def find(self, region: Region, number: int | None) -> Category:
        """Return the category of a region that was imported with the category id `number`, or with None."""
        name = region.label or UNLABELED
        known = None if number is None else self._by_number.get(number)
        if known is not None and known.name == name:
            return known
        if name not in self._by_name:
            again = number if number is not None and known is None else self._free()
            self._add(make_category(again, {"name": name}))
        return self._by_name[name]

    def entries(self) -> Iterator[dict[str, object]]:
        """Yield the entries of the field `categories`, by id."""
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
