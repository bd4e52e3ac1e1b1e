"""Export a collection as COCO: `annotations/instances.json`, `annotations/captions.json` and the folder `images`.

Annotations that came from a COCO file keep their ids, categories and file names. What COCO has no field for is added to
the entries and read back by our importer, while other readers ignore it: `phrase`, `label`, `score`, `slice` and
`source` of an annotation, `kind` and `source` of a caption, `labels`, `group` and `split` of an image. Conversations
and contexts are not exported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow.compute as pc

from foveate.core.export_folder import staged_folder
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.image_export import UNLABELED, select_rows
from foveate.records.images import SUFFIXES, BadImage
from foveate.records.importers.coco import CROWD, Category, make_category
from foveate.records.importers.files import make_key
from foveate.records.record import Caption, Region
from foveate.records.region_sources import OWN_SOURCES, SelectedRegions

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


T = TypeVar("T")

COLLECTION_TARGET = True  # `foveate export` offers it
NO_PHRASE = "(no phrase)"
"""Category of a box that no phrase belongs to."""


@dataclass(slots=True)
class CocoExport:
    """Written files, counts, and images that could not be read, with the reason."""

    paths: dict[str, Path]
    images: int = 0
    regions: int = 0
    captions: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def export_coco(
    collection: Collection,
    folder: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
) -> CocoExport:
    """Write a collection to `folder` in the format of COCO, atomically. Images keep their bytes.

    Boxes are x, y, width, height in pixels after EXIF rotation, unrounded, so that importing the folder gives the same
    float32 corners. Boxes that came from a COCO file are within 0.001 pixels of it for images of up to 8,192 pixels a
    side.

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the folder is not empty, no image is selected, no region has a source, or a file cannot be written.

    Example:
        >>> export_coco(Collection.open(collection_folder), new_folder).images
        32
    """
    folder = Path(folder)
    selected = select_rows(collection, rows)
    regions = SelectedRegions(collection, region_sources)
    paths = {name: folder / "annotations" / f"{name}.json" for name in ("instances", "captions")}
    export = CocoExport({**paths, "images": folder / "images"})
    with staged_folder(folder) as temporary:
        (temporary / "annotations").mkdir()
        names = ImageNames(collection)
        selected = [
            # An image that cannot be read must be left out of the annotations as well.
            row
            for row in track(selected, description="exporting images")
            if _copy_image(row, names, temporary, export)
        ]
        with (temporary / "annotations" / "instances.json").open("w", encoding="utf-8") as file:
            _write_instances(file, regions, selected, names, export)
        with (temporary / "annotations" / "captions.json").open("w", encoding="utf-8") as file:
            _write_captions(file, collection, selected, names, export)
    return export


def _copy_image(row: int, names: ImageNames, temporary: Path, export: CocoExport) -> bool:
    """Copy one image; return False if it cannot be read."""
    key = names.collection.keys[row]
    try:
        data = names.collection.image_bytes(row)
    except BadImage as error:
        export.unreadable[key] = str(error)
        return False
    path = temporary / "images" / names.file_name(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    export.images += 1
    return True


def _write_instances(
    file: IO[str], regions: SelectedRegions, selected: list[int], names: ImageNames, export: CocoExport
) -> None:
    collection = names.collection
    categories = Categories(collection)
    image_ids = names.image_ids(selected)

    def describe(row: int, region: Region, known: Mapping[str, Any]) -> dict[str, object]:
        export.regions += 1
        return _annotation(collection, row, region, known, categories)

    _write_object(
        file,
        {
            "images": (_image(collection, row, names, image_ids[row]) for row in selected),
            "annotations": _number_entries(
                collection, "coco_regions", selected, image_ids, regions.read_numbered, describe
            ),
            # Last, since a region of an unknown category adds one.
            "categories": categories.entries(),
        },
        info=_info(collection),
    )


def _write_captions(
    file: IO[str], collection: Collection, selected: list[int], names: ImageNames, export: CocoExport
) -> None:
    image_ids = names.image_ids(selected)

    def describe(row: int, caption: Caption, known: Mapping[str, Any]) -> dict[str, object]:
        export.captions += 1
        # Only what plain COCO does not say is added, so that an imported file comes out as it was.
        kind = {} if caption.kind == "caption" else {"kind": caption.kind}
        return {"caption": caption.text, **kind, **_add_source(collection, row, caption.source)}

    def read(row: int) -> Iterable[tuple[int, Caption]]:
        return enumerate(collection.read_captions(row))

    images = (_image(collection, row, names, image_ids[row]) for row in selected)
    annotations = _number_entries(collection, "coco_captions", selected, image_ids, read, describe)
    _write_object(file, {"images": images, "annotations": annotations}, info=_info(collection))


def _number_entries(
    collection: Collection,
    kind: str,
    selected: list[int],
    image_ids: Mapping[int, int],
    read: Callable[[int], Iterable[tuple[int, T]]],
    describe: Callable[[int, T, Mapping[str, Any]], dict[str, object]],
) -> Iterator[dict[str, object]]:
    """Yield the annotations of images, with their imported ids where there are any.

    Args:
        kind: table of the imported ids.
        read: row of an image -> (position, annotation).
        describe: row, annotation and its imported ids -> the other fields of its entry.
    """
    free = IdAllocator(collection, kind, "annotation_id")
    for row in selected:
        known = {entry["position"]: entry for entry in read_rows(collection, kind, row)}
        for position, annotation in read(row):
            ids = known.get(position, {})
            fields = describe(row, annotation, ids)
            yield {"id": free.take(ids.get("annotation_id")), "image_id": image_ids[row], **fields}


def _info(collection: Collection) -> dict[str, object]:
    return {"description": collection.name, "license": collection.license}


def _image(collection: Collection, row: int, names: ImageNames, number: int) -> dict[str, object]:
    index = collection.index
    entry: dict[str, object] = {
        "id": number,
        "file_name": names.file_name(row),
        "width": int(index["width"][row]),
        "height": int(index["height"][row]),
    }
    further = {"labels": collection.read_labels(row), "group": collection.groups[row], "split": collection.splits[row]}
    return entry | {name: value for name, value in further.items() if value}


def _annotation(
    collection: Collection, row: int, region: Region, known: Mapping[str, Any], categories: Categories
) -> dict[str, object]:
    """Return one annotation without its ids, and only those additional fields that differ from the usual."""
    index = collection.index
    box = region.box.to_xywh(int(index["width"][row]), int(index["height"][row]))
    category = categories.find(region, known.get("category_id"))
    area, crowd = known.get("area"), int(region.slice == CROWD)
    entry: dict[str, object] = {
        "category_id": category.number,
        # Do not round: a float32 corner times integer pixels is exact in float64, so importing gives equal bits.
        "bbox": [box.x, box.y, box.width, box.height],
        "area": box.width * box.height if area is None else area,
        "iscrowd": crowd,
        # Outlines are not stored; a reader of the field finds none.
        "segmentation": [],
    }
    usual = {
        "phrase": category.phrase,
        "label": category.name,
        "slice": CROWD if crowd else category.slice,
        "score": 1.0,
    }
    for name, expected in usual.items():
        value = getattr(region, name)
        if value != expected:
            entry[name] = value
    return entry | _add_source(collection, row, region.source)


def _add_source(collection: Collection, row: int, source: str) -> dict[str, object]:
    """Return the source of a caption or region if it is not that of its image."""
    return {} if source == collection.index["source"][row] else {"source": source}


def _write_object(file: IO[str], lists: Mapping[str, Iterator[object]], *, info: object) -> None:
    """Write a JSON object of lists, one entry per line, without holding the lists in memory."""
    file.write(f'{{"info": {json.dumps(info, ensure_ascii=False)}')
    for name, entries in lists.items():
        file.write(f',\n"{name}": [')
        for number, entry in enumerate(entries):
            file.write(",\n" if number else "\n")
            # NaN is not JSON; most readers would refuse the whole file.
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False, default=_plain))
        file.write("\n]")
    file.write("}\n")


def _plain(value: object) -> object:
    # Numbers of the index are NumPy's, which json does not write.
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in COCO's JSON")


def list_coco_boxes(
    images: Sequence[tuple[str, int, int]],
    boxes: Sequence[tuple[int, PixelBox, str]],
    *,
    unboxed: Sequence[str] = (),
    description: str = "",
) -> dict[str, Any]:
    """Return boxes of a few images with their phrases as the content of a COCO file.

    Categories are the phrases; a box without one has the category NO_PHRASE.

    Args:
        images: file name, width and height of each one. boxes: number of the image, box, and phrase or "".
        unboxed: phrases without a box, stored as `info.unboxed`.

    >>> content = list_coco_boxes([("a.jpg", 64, 48)], [(0, PixelBox(1, 2, 5, 8), "boat")])
    >>> content["categories"], content["annotations"][0]["bbox"]
    ([{'id': 1, 'name': 'boat'}], [1, 2, 4, 6])
    """
    # Ids begin at 1: pycocotools takes an annotation with the id 0 for one without a match.
    names = list(dict.fromkeys(phrase or NO_PHRASE for _, _, phrase in boxes))
    annotations = [
        {
            "id": number,
            "image_id": image + 1,
            "category_id": names.index(phrase or NO_PHRASE) + 1,
            "bbox": [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1],
            "area": (box.x2 - box.x1) * (box.y2 - box.y1),
            "iscrowd": 0,
            "segmentation": [],
        }
        for number, (image, box, phrase) in enumerate(boxes, 1)
    ]
    return {
        "info": {"description": description, "unboxed": list(unboxed)},
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, width, height) in enumerate(images, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": annotations,
    }
