"""Import LVIS: boxes of 1,203 categories on COCO's images.

The format is that of COCO. Images are named by the last two parts of `coco_url` (`train2017/000000391895.jpg`), also
their key, or by `file_name` in older files. The phrase of a category is its name with blanks for "_"; synonyms,
definition and frequency are stored in `coco_categories`, and the frequency ("rare", "common", "frequent") is the slice
of its regions, the group that LVIS reports by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coco import find_annotation_file, import_coco_file
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
    """Import the images of an LVIS file, with their boxes, into the collection `target`.

    Args:
        source: the file (`lvis_v1_val.json`), or a folder that has one, directly or in `annotations`.
        target: collection folder; created if it does not exist.
        images: the folder that has `train2017` and `val2017`, or the images.
        captions: a COCO captions file with the same image ids.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: there is no file or more than one, a file is damaged, or no image is found.
    """
    path = find_annotation_file(Path(source), _PATTERNS)
    read = read_coco(path, None if captions is None else check_source(Path(captions)))
    return import_coco_file(path, read, target, _names, images=images, group_by=group_by, reference=reference, **shared)


def _names(image: CocoImage) -> list[object]:
    url = image.entry.get("coco_url")
    # Version 1 has no file_name, and its validation images are from train2017, too: only the URL states the folder.
    if isinstance(url, str) and url.count("/") >= 2:
        folder, name = url.split("/")[-2:]
        return [f"{folder}/{name}", name]
    return [image.entry.get("file_name")]


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        files = [file for folder in (path, path / "annotations") for file in folder.glob(_PATTERNS[0])]
        return files[0].name if files else None
    return path.name if path.is_file() and path.match(_PATTERNS[0]) else None


FORMAT = Format(
    name="lvis",
    run=import_lvis,
    recognize=_recognize,
    options=("images", "captions", "group_by", "reference"),
)
