"""Export a collection as COCO: `annotations/instances.json`, `annotations/captions.json` and the folder `images`.

What came from a COCO file goes out with the ids, categories and file names that it came with. What COCO has no
field for is added to its entries and read back by our importer: an annotation's `phrase`, `label`, `score`,
`slice` and `source`, a caption's `kind` and `source`, an image's `labels`, `group` and `split`; other readers
ignore them. Conversations and contexts are not exported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically
from foveate.core.progress import track
from foveate.records.collection import Collection
from foveate.records.exporters.coco_ids import Categories, FreeIds, Names, rows_of
from foveate.records.images import BadImage
from foveate.records.importers.coco_file import CROWD
from foveate.records.record import Region
from foveate.records.region_sources import OWN, SelectedRegions


@dataclass(slots=True)
class CocoExport:
    """What was written: the files, how many of each, and the images that could not be read, with the reason."""

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
    region_sources: Sequence[str] = (OWN,),
) -> CocoExport:
    """Write the rows (all by default) of a collection to `folder` in COCO's form.

    Regions are those of the sources (see `foveate.records.region_sources`), by default whatever no detector made.

    Boxes are x, y, width, height in pixels of the image after EXIF rotation, unrounded, so that importing the
    folder gives the same float32 corners; boxes that came from a COCO file are within 0.001 pixels of it for images
    of up to 8,192 pixels a side. Images keep their bytes. The folder appears whole or not at all.

    Raises:
        UserError: the folder exists and is not empty, no image is chosen, a source made no region, or a file cannot
            be written.
    """
    folder = Path(folder)
    chosen = list(range(len(collection))) if rows is None else [int(row) for row in rows]
    if not chosen:
        raise UserError(f"nothing to export: no image of the collection {collection.name!r} is chosen")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: choose a new one")
    regions = SelectedRegions(collection, region_sources)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    paths = {name: folder / "annotations" / f"{name}.json" for name in ("instances", "captions")}
    export = CocoExport({**paths, "images": folder / "images"})
    try:
        (temporary / "annotations").mkdir(parents=True)
        names = Names(collection)
        chosen = [row for row in track(chosen, description="exporting images") if _copy(row, names, temporary, export)]
        with (temporary / "annotations" / "instances.json").open("w", encoding="utf-8") as file:
            _write_instances(file, regions, chosen, names, export)
        with (temporary / "annotations" / "captions.json").open("w", encoding="utf-8") as file:
            _write_captions(file, collection, chosen, names, export)
        commit_atomically(temporary, folder)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return export


def _copy(row: int, names: Names, temporary: Path, export: CocoExport) -> bool:
    """Copy one image; False where it cannot be read."""
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
    file: IO[str], regions: SelectedRegions, chosen: list[int], names: Names, export: CocoExport
) -> None:
    collection = names.collection
    categories = Categories(collection)
    image_ids = names.image_ids(chosen)
    free = FreeIds(collection, "coco_regions", "annotation_id")

    def annotations() -> Iterator[dict[str, object]]:
        for row in chosen:
            known = {one["position"]: one for one in rows_of(collection, "coco_regions", row)}
            for position, region in regions.numbered(row):
                export.regions += 1
                entry = _annotation(collection, row, region, known.get(position, {}), categories)
                yield {
                    "id": free.take(known.get(position, {}).get("annotation_id")),
                    "image_id": image_ids[row],
                    **entry,
                }

    _write_object(
        file,
        {
            "images": (_image(collection, row, names, image_ids[row]) for row in chosen),
            "annotations": annotations(),
            # Read last: a region of no known category adds one.
            "categories": categories.entries(),
        },
        info=_info(collection),
    )


def _write_captions(file: IO[str], collection: Collection, chosen: list[int], names: Names, export: CocoExport) -> None:
    image_ids = names.image_ids(chosen)
    free = FreeIds(collection, "coco_captions", "annotation_id")

    def annotations() -> Iterator[dict[str, object]]:
        for row in chosen:
            known = {one["position"]: one for one in rows_of(collection, "coco_captions", row)}
            for position, caption in enumerate(collection.read_captions(row)):
                export.captions += 1
                entry: dict[str, object] = {
                    "id": free.take(known.get(position, {}).get("annotation_id")),
                    "image_id": image_ids[row],
                    "caption": caption.text,
                }
                if caption.kind != "caption":
                    entry["kind"] = caption.kind
                yield entry | _own_source(collection, row, caption.source)

    images = (_image(collection, row, names, image_ids[row]) for row in chosen)
    _write_object(file, {"images": images, "annotations": annotations()}, info=_info(collection))


def _info(collection: Collection) -> dict[str, object]:
    return {"description": collection.name, "license": collection.license}


def _image(collection: Collection, row: int, names: Names, number: int) -> dict[str, object]:
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
    """One annotation without its ids; fields that COCO lacks only where they say something."""
    index = collection.index
    box = region.box.to_xywh(int(index["width"][row]), int(index["height"][row]))
    category = categories.of(region, known.get("category_id"))
    area, crowd = known.get("area"), int(region.slice == CROWD)
    entry: dict[str, object] = {
        "category_id": category.number,
        # Not rounded: a float32 corner times whole pixels is exact in float64, so it comes back bit for bit.
        "bbox": [box.x, box.y, box.width, box.height],
        "area": box.width * box.height if area is None else area,
        "iscrowd": crowd,
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
    return entry | _own_source(collection, row, region.source)


def _own_source(collection: Collection, row: int, source: str) -> dict[str, object]:
    """The source of a caption or region, where it is not that of its image."""
    return {} if source == collection.index["source"][row] else {"source": source}


def _write_object(file: IO[str], lists: Mapping[str, Iterator[object]], *, info: object) -> None:
    """Write a JSON object of lists, one entry a line, without holding them in memory."""
    file.write(f'{{"info": {json.dumps(info, ensure_ascii=False)}')
    for name, entries in lists.items():
        file.write(f',\n"{name}": [')
        for number, entry in enumerate(entries):
            file.write(",\n" if number else "\n")
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False, default=_plain))
        file.write("\n]")
    file.write("}\n")


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in COCO's JSON")
