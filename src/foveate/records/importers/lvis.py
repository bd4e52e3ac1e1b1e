"""Import LVIS: boxes of 1,203 categories on COCO's images.

The form is COCO's. Images are named by the last two parts of `coco_url` (`train2017/000000391895.jpg`), which
is also their key, or by `file_name` in older files. A category's phrase is its name with blanks for "_"; its
synonyms, definition and frequency go to `coco_categories`, and the frequency ("rare", "common", "frequent") is
the region's slice, the group that LVIS reports by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coco import annotation_file, import_coco_file
from foveate.records.importers.coco_file import CocoImage, read_coco
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source
from foveate.records.importers.sample import SharedOptions

_PATTERNS = ("lvis*.json",)


def import_lvis(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    captions: str | Path | None = None,
    group_by: str = "none",
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Take the images of an LVIS file, with their boxes, into the collection `target`.

    Args:
        source: the file (`lvis_v1_val.json`), or a folder that has one, itself or in its folder `annotations`.
        target: collection folder, made where it does not exist.
        images: the folder that has `train2017` and `val2017`, or the images themselves.
        captions: a COCO captions file, used where its image ids are the same.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: no file or more than one is there, a file is damaged, or no image is found.
    """
    path = annotation_file(Path(source), _PATTERNS)
    read = read_coco(path, None if captions is None else check_source(Path(captions)))
    return import_coco_file(path, read, target, _names, images=images, group_by=group_by, reference=reference, **shared)


def _names(image: CocoImage) -> list[object]:
    url = image.entry.get("coco_url")
    if isinstance(url, str) and url.count("/") >= 2:
        folder, name = url.split("/")[-2:]
        return [f"{folder}/{name}", name]
    return [image.entry.get("file_name")]


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        found = [one for folder in (path, path / "annotations") for one in folder.glob(_PATTERNS[0])]
        return found[0].name if found else None
    return path.name if path.is_file() and path.match(_PATTERNS[0]) else None


FORMAT = Format(
    name="lvis",
    run=import_lvis,
    recognize=_recognize,
    options=("images", "captions", "group_by", "reference"),
)
