"""Export a collection for Label Studio: `tasks.json`, the labeling interface `labeling.xml` and the folder `images`.

Regions and captions are an annotation of their image; pseudo-labels are predictions, one for each source, which people
accept or correct. Label Studio serves the images as local files, from the export folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from foveate.core.export_folder import staged_folder
from foveate.records.collection import Collection
from foveate.records.image_export import UNLABELED, ExportSummary, ImageExport
from foveate.records.record import Region
from foveate.records.region_sources import OWN_SOURCES, is_pseudo_label

COLLECTION_TARGET = True  # `foveate export` offers it
_IMAGE, _BOX, _PHRASE, _CAPTION = "image", "box", "phrase", "caption"  # names of the tags of labeling.xml


def export_label_studio(
    collection: Collection,
    folder: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
) -> ExportSummary:
    """Write a collection to `folder` for Label Studio, atomically. Images keep their bytes.

    A box is x, y of its upper left corner, width and height in percent of the image after EXIF rotation, not rounded
    and not rotated. Phrases are texts of their regions, captions texts of the image, without kind and source; labels,
    group and split of an image are in the task's data. LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT must be the folder.

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the folder is not empty, no image is selected or can be read, or no region has a source.

    Example:
        >>> export_label_studio(Collection.open(collection_folder), new_folder).images
        32
    """
    export = ImageExport(collection, rows, region_sources)
    with staged_folder(Path(folder)) as stage:
        with (stage / "tasks.json").open("w", encoding="utf-8") as file:
            # One task per line, without holding all of them in memory.
            for number, (row, name) in enumerate(export.copy_images(stage / "images")):
                file.write(",\n" if number else "[\n")
                file.write(json.dumps(_make_task(export, row, name), ensure_ascii=False, allow_nan=False))
            file.write("\n]\n")
        ElementTree.ElementTree(_make_interface(export.classes)).write(stage / "labeling.xml", encoding="utf-8")
        summary = export.finish()
    summary.notes.append(
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=FOLDER, and add FOLDER/images to the project as local storage"
    )
    return summary


def _make_interface(classes: Sequence[str]) -> ElementTree.Element:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}")
    labels = ElementTree.SubElement(view, "RectangleLabels", name=_BOX, toName=_IMAGE)
    for name in classes or [UNLABELED]:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.SubElement(view, "TextArea", name=_PHRASE, toName=_IMAGE, editable="true", perRegion="true")
    ElementTree.SubElement(view, "TextArea", name=_CAPTION, toName=_IMAGE, editable="true")
    ElementTree.indent(view)
    return view


def _make_task(export: ImageExport, row: int, name: str) -> dict[str, Any]:
    collection = export.collection
    captions = collection.read_captions(row)
    export.summary.captions += len(captions)
    further = {"labels": collection.read_labels(row), "group": collection.groups[row], "split": collection.splits[row]}
    data = {_IMAGE: f"/data/local-files/?d=images/{quote(name)}", "key": collection.keys[row]}
    task: dict[str, Any] = {"data": data | {field: value for field, value in further.items() if value}}
    predicted: dict[str, list[dict[str, Any]]] = {}
    own: list[dict[str, Any]] = []
    for number, region in enumerate(export.read_regions(row)):
        results = predicted.setdefault(region.source, []) if is_pseudo_label(region.source) else own
        results += _make_results(f"region-{number}", region, *export.size(row))
    if captions:
        # All texts of one field are one result, as Label Studio writes them.
        texts = [caption.text for caption in captions]
        own.append(_make_result("captions", _CAPTION, "textarea", {"text": texts}))
    if own:
        task["annotations"] = [{"result": own}]
    if predicted:
        task["predictions"] = [{"model_version": source, "result": results} for source, results in predicted.items()]
    return task


def _make_results(number: str, region: Region, width: int, height: int) -> list[dict[str, Any]]:
    """Return the box with its class, and its phrase: Label Studio joins results of one id and one place."""
    box = region.box
    place = {"x": box.x1, "y": box.y1, "width": box.width, "height": box.height}
    value = {name: 100 * fraction for name, fraction in place.items()} | {"rotation": 0}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    boxes = {**value, "rectanglelabels": [region.label or UNLABELED]}
    results = [_make_result(number, _BOX, "rectanglelabels", boxes) | size | {"score": region.score}]
    if region.phrase:
        results.append(_make_result(number, _PHRASE, "textarea", {**value, "text": [region.phrase]}) | size)
    return results


def _make_result(number: str, tag: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "from_name": tag, "to_name": _IMAGE, "type": kind, "value": value}
