"""Export a collection for FiftyOne: `samples.json`, `metadata.json` and the folder `data`.

This is the layout of `fiftyone.types.FiftyOneDataset` without the fields of a release: FiftyOne takes it by the missing
`version`, and finds the fields of the samples itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foveate.core.export_folder import staged_folder
from foveate.core.files import write_json_atomically
from foveate.records.collection import Collection
from foveate.records.image_export import UNLABELED, ExportSummary, ImageExport
from foveate.records.importers.coco import CROWD
from foveate.records.record import Region
from foveate.records.region_sources import OWN_SOURCES, is_pseudo_label

COLLECTION_TARGET = True  # `foveate export` offers it


def export_fiftyone(
    collection: Collection,
    folder: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
) -> ExportSummary:
    """Write a collection to `folder` for FiftyOne, atomically. Images keep their bytes.

    A box is x, y of its upper left corner, width and height as fractions of the image after EXIF rotation, not rounded.
    Regions are in `ground_truth`, pseudo-labels in `predictions`; the split of an image is a tag of its sample.

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the folder is not empty, no image is selected or can be read, or no region has a source.

    Example:
        >>> export_fiftyone(Collection.open(collection_folder), new_folder).images
        32
    """
    export = ImageExport(collection, rows, region_sources)
    with staged_folder(Path(folder)) as stage:
        with (stage / "samples.json").open("w", encoding="utf-8") as file:
            for number, (row, name) in enumerate(export.copy_images(stage / "data")):
                file.write(",\n" if number else '{"samples": [\n')
                file.write(json.dumps(_make_sample(export, row, name), ensure_ascii=False, allow_nan=False))
            file.write("\n]}\n")
        info = {"description": collection.name, "license": collection.license, "classes": export.classes}
        write_json_atomically(stage / "metadata.json", {"media_type": "image", "info": info})
        summary = export.finish()
    return summary


def _make_sample(export: ImageExport, row: int, name: str) -> dict[str, Any]:
    collection = export.collection
    captions, split = collection.read_captions(row), collection.splits[row]
    export.summary.captions += len(captions)
    width, height = export.size(row)
    regions = export.read_regions(row)
    labels = [
        {"_cls": "Classification", "label": value, "field": field}
        for field, value in collection.read_labels(row).items()
    ]
    lists = {
        "labels": ("Classifications", labels),
        "ground_truth": ("Detections", [_make_box(region) for region in regions if not is_pseudo_label(region.source)]),
        "predictions": ("Detections", [_make_box(region) for region in regions if is_pseudo_label(region.source)]),
    }
    return {
        "filepath": f"data/{name}",
        "tags": [split] if split else [],
        "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
        "key": collection.keys[row],
        "group_name": collection.groups[row],  # `group` is FiftyOne's for images of several cameras
        "captions": [caption.text for caption in captions],
        "caption_kinds": [caption.kind for caption in captions],
        "caption_sources": [caption.source for caption in captions],
        **{field: {"_cls": kind, kind.lower(): rows} for field, (kind, rows) in lists.items() if rows},
    }


def _make_box(region: Region) -> dict[str, Any]:
    box = region.box
    return {
        "_cls": "Detection",
        "label": region.label or UNLABELED,
        "bounding_box": [box.x1, box.y1, box.width, box.height],
        "confidence": region.score,
        "phrase": region.phrase,
        "slice": region.slice,
        "source": region.source,
        "iscrowd": region.slice == CROWD,  # the name that FiftyOne's evaluation looks for
    }
