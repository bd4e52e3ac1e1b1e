"""Export a collection as Ultralytics YOLO: `images/SPLIT`, `labels/SPLIT` and `data.yaml`.

A label file has a line for each region, "class cx cy w h" as fractions of the image, and is empty for an image without
regions. Regions are boxes, so there are no polygons. Crowd boxes are left out, as Ultralytics' own converter does: a
detector must not learn a group as one object. Scores, phrases and captions have no place in the format; `keys.json`
has the key of each file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from foveate.core.export_folder import staged_folder
from foveate.core.files import write_json_atomically
from foveate.records.collection import Collection
from foveate.records.image_export import UNLABELED, ExportSummary, ImageExport, make_unique_names
from foveate.records.importers.coco import CROWD
from foveate.records.record import Region
from foveate.records.region_sources import OWN_SOURCES

COLLECTION_TARGET = True  # `foveate export` offers it
_ROLES = ("train", "val", "test")  # splits that Ultralytics knows


def export_yolo(
    collection: Collection,
    folder: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
) -> ExportSummary:
    """Write a collection to `folder` for Ultralytics YOLO, atomically. Images keep their bytes.

    Fractions have nine significant digits: corners are within 1e-9 of the image's side. The split "validation" becomes
    "val"; images without split are in "train" if no image has one. Class numbers are the same for all splits of a
    collection.

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the folder is not empty, no image is selected or can be read, or no region has a source.

    Example:
        >>> export_yolo(Collection.open(collection_folder), new_folder).images
        32
    """
    export = ImageExport(collection, rows, region_sources)
    splits = export.rows_by_split()
    if "val" not in splits and "validation" in splits:
        splits["val"] = splits.pop("validation")
    keys: dict[str, str] = {}
    crowds = 0
    with staged_folder(Path(folder)) as stage:
        for split, selected in zip(make_unique_names(splits), splits.values(), strict=True):
            labels = stage / "labels" / split
            labels.mkdir(parents=True)
            for row, name in export.copy_images(stage / "images" / split, selected):
                regions = export.read_regions(row)
                lines = [_format_line(export, region) for region in regions if region.slice != CROWD]
                crowds += len(regions) - len(lines)
                (labels / name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
                keys[f"{split}/{name}"] = collection.keys[row]
        summary = export.finish()
        summary.regions -= crowds
        summary.notes += [f"{crowds:,} crowd boxes are left out"] if crowds else []
        present = list(dict.fromkeys(file.partition("/")[0] for file in keys))
        (stage / "data.yaml").write_text(_make_yaml(export, present), encoding="utf-8")
        write_json_atomically(stage / "keys.json", keys)
    return summary


def _format_line(export: ImageExport, region: Region) -> str:
    box = region.box.to_center()
    values = (f"{value:.9g}" for value in (box.cx, box.cy, box.width, box.height))
    return f"{export.find_class(region)} {' '.join(values)}\n"


def _make_yaml(export: ImageExport, splits: list[str]) -> str:
    """Return data.yaml, and note what Ultralytics cannot be told."""
    notes = export.summary.notes
    # Without `path`, which would be relative to the working folder, the folder of data.yaml is the root. Other splits
    # must not become keys, since one named "download" would be run.
    folders = {role: f"images/{role}" for role in _ROLES if role in splits}
    notes += [f"images/{split}: data.yaml has no key for this split" for split in splits if split not in _ROLES]
    for role in ("train", "val"):
        if role not in folders:
            folders[role] = f"images/{next((name for name in _ROLES if name in splits), splits[0])}"
            notes.append(f"no image is in the split {role}, which Ultralytics requires: it is {folders[role]} here")
    # Ultralytics refuses a data set without classes, such as one of backgrounds alone.
    content = {**folders, "names": dict(enumerate(export.classes or [UNLABELED]))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
