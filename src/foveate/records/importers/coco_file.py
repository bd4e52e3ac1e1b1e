"""Read COCO annotation files (instances, captions, or both) into one entry per image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.records.importers.json_files import get_integer, get_list, get_stated_size, make_finding, read_annotations
from foveate.records.importers.sample import Problem, Sample

CROWD = "crowd"
_OUTLINES = "outlines (polygons or RLE) left out; their boxes are used"
_HEAD_BYTES = 65536
# Plain COCO has none of these; ids that are texts are those of camera traps, too.
_TRAPS = re.compile(rb'"(seq_id|seq_num_frames|frame_num|sequence_level_annotation)"|"(location|image_id)"\s*:\s*"')
_CROWDS = f"crowd boxes (iscrowd) imported, with the slice {CROWD!r}"


def read_head(path: Path) -> bytes:
    """Read the beginning of a file, enough to identify it: files of millions of images are gigabytes."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def is_coco(head: bytes) -> bool:
    """Whether the beginning of a JSON file has lists of images or annotations."""
    return b'"images"' in head or b'"annotations"' in head


def is_camera_traps(head: bytes) -> bool:
    """Whether the beginning of a JSON file has fields that COCO Camera Traps have and plain COCO does not."""
    return _TRAPS.search(head) is not None


@dataclass(frozen=True, slots=True)
class Category:
    """A category of the file, with its phrase for regions."""

    number: int
    name: str
    phrase: str
    slice: str
    row: Mapping[str, object]


_NO_CATEGORY = Category(0, "", "", "", {})
"""Category of a region with a caption that states none."""


@dataclass(slots=True)
class CocoImage:
    """One image of the file with its annotations, of which only ids are checked."""

    number: int
    entry: Mapping[str, Any]
    annotations: list[Mapping[str, Any]] = field(default_factory=list)
    captions: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class CocoFile:
    """Content of one or two annotation files; `findings` are about entries that belong to no image."""

    images: dict[int, CocoImage] = field(default_factory=dict)
    categories: dict[int, Category] = field(default_factory=dict)
    findings: list[Sample] = field(default_factory=list)
    further: Counter[str] = field(default_factory=Counter)


def read_coco(path: Path, captions: Path | None = None) -> CocoFile:
    """Read an annotation file and optionally one with captions.

    Needs memory of twice the size of the file (measured on 78 MB), since outlines are dropped while it is parsed.
    Unusable entries become findings.

    Raises:
        UserError: a file cannot be read, is not JSON, or lacks the lists "images" and "annotations".
    """
    read = CocoFile()
    content = read_annotations(path, _without_outline)
    _read_images(get_list(content, "images", path), read, path.name)
    annotations = get_list(content, "annotations", path)
    if any(isinstance(entry, dict) and "caption" not in entry for entry in annotations):
        _read_categories(get_list(content, "categories", path), read, path.name)
    elif any(isinstance(entry, dict) and entry.get("bbox") for entry in annotations):
        _read_categories(_list(content.get("categories")), read, path.name)  # dense captions need none
    _read_annotations(annotations, read, path.name)
    if captions is not None:
        content = read_annotations(captions, _without_outline)
        _read_annotations(get_list(content, "annotations", captions), read, captions.name)
    return read


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        # Only that there was one: outlines are most of the file, and are counted, not used.
        entry["segmentation"] = bool(entry["segmentation"])
    return entry


def _read_images(entries: list[Any], read: CocoFile, source: str) -> None:
    for position, entry in enumerate(entries):
        number = get_integer(entry, "id") if isinstance(entry, dict) else None
        if number is None:
            detail = "an entry of 'images' must be an object with an integer 'id'"
            read.findings.append(make_finding(f"images[{position}]", source, "image", "malformed entry", detail))
        elif number in read.images:
            detail = f"an earlier entry of 'images' has the id {number} and is kept"
            read.findings.append(make_finding(f"images[{position}]", source, "image", "duplicate id", detail))
        else:
            read.images[number] = CocoImage(number, entry)


def _read_categories(entries: list[Any], read: CocoFile, source: str) -> None:
    for position, entry in enumerate(entries):
        number = get_integer(entry, "id") if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            detail = "an entry of 'categories' must have an integer 'id' and a 'name'"
        elif number in read.categories:
            detail = f"an earlier entry of 'categories' has the id {number} and is kept"
        else:
            read.categories[number] = make_category(number, entry)
            continue
        read.findings.append(make_finding(f"categories[{position}]", source, "category", "malformed entry", detail))


def make_category(number: int, entry: Mapping[str, Any]) -> Category:
    """Make a category from an entry of the file, or from its stored row.

    Categories of COCO have a supercategory; those of LVIS have synonyms, a definition and a frequency.
    """
    synonyms = [text for text in _list(entry.get("synonyms")) if isinstance(text, str) and text.strip()]
    name, frequency = entry["name"].strip(), _text(entry.get("frequency"))
    row = {
        "category_id": number,
        "name": name,
        "supercategory": _text(entry.get("supercategory")),
        "synonyms": synonyms,
        "definition": _text(entry.get("def", entry.get("definition"))),
        "frequency": frequency,
    }
    # LVIS names are like "aerosol_can"; those of COCO have blanks already.
    phrase = name.replace("_", " ") if synonyms else name
    return Category(number, name, phrase, {"r": "rare", "c": "common", "f": "frequent"}.get(frequency, ""), row)


def _read_annotations(entries: list[Any], read: CocoFile, source: str) -> None:
    # Captions and boxes have separate ids: the two files of COCO use the same numbers.
    seen: set[tuple[bool, int]] = set()
    for position, entry in enumerate(entries):
        where = f"annotations[{position}]"
        if not isinstance(entry, dict):
            detail = "an entry of 'annotations' must be an object"
            read.findings.append(make_finding(where, source, "region", "malformed entry", detail))
            continue
        # A caption with a box is about that region (dense captions), not about the image.
        is_caption, number = "caption" in entry and not entry.get("bbox"), get_integer(entry, "id")
        image = read.images.get(get_integer(entry, "image_id") or 0)
        subject = "caption" if is_caption else "region"
        # Compare again: above, 0 means a missing id, but it may be the id of an image.
        if image is None or image.number != entry.get("image_id"):
            detail = f"'image_id' is {str(entry.get('image_id'))[:40]}: no entry of 'images' has this id"
            read.findings.append(make_finding(where, source, subject, "unknown image", detail))
        elif number is not None and (is_caption, number) in seen:
            detail = f"an earlier entry of 'annotations' has the id {number} and is kept"
            read.findings.append(make_finding(where, source, subject, "duplicate id", detail))
        else:
            if number is not None:
                seen.add((is_caption, number))
            (image.captions if is_caption else image.annotations).append(entry)


def fill_sample(image: CocoImage, read: CocoFile, sample: Sample, *, file_name: str) -> Sample:
    """Fill captions and regions of an image into its sample, with their ids in the file."""
    captions, caption_rows = [], []
    for position, entry in enumerate(image.captions):
        if isinstance(entry["caption"], str):
            kind, source = _text(entry.get("kind")) or "caption", _text(entry.get("source"))
            captions.append({"text": entry["caption"], "kind": kind, "source": source})
            caption_rows.append({"annotation_id": get_integer(entry, "id")})
        else:
            sample.problems.append(Problem("caption", "not text", "field 'caption' must be text", position))
    regions, region_rows = [], []
    for position, entry in enumerate(image.annotations):
        category = read.categories.get(get_integer(entry, "category_id") or 0)
        if "category_id" not in entry and _text(entry.get("caption")):
            category = _NO_CATEGORY
        # Compare again: above, 0 means a missing id, but it may be the id of a category.
        elif category is None or category.number != entry.get("category_id"):
            detail = f"'category_id' is {str(entry.get('category_id'))[:40]}: no entry of 'categories' has this id"
            sample.problems.append(Problem("region", "unknown category", detail, position))
            continue
        crowd = entry.get("iscrowd") in (1, True)
        regions.append(_region(entry, category, crowd=crowd))
        region_rows.append(_region_row(entry, category, crowd=crowd))
    sample.fields = {
        "captions": captions,
        "regions": regions,
        **{name: image.entry[name] for name in ("labels", "group", "split") if name in image.entry},
    }
    url = image.entry.get("coco_url") or image.entry.get("flickr_url")
    if isinstance(url, str) and url:
        sample.fields = {**sample.fields, "url": url}
    sample.stated_size = get_stated_size(image.entry)
    sample.extra = {"coco_images": [{"image_id": image.number, "file_name": file_name}]}
    sample.region_rows = ("coco_regions", region_rows)
    sample.caption_rows = ("coco_captions", caption_rows)
    read.further[_OUTLINES] += sum(entry.get("segmentation") is True for entry in image.annotations)
    read.further[_CROWDS] += sum(region["slice"] == CROWD for region in regions)
    return sample


def _region(entry: Mapping[str, Any], category: Category, *, crowd: bool) -> dict[str, Any]:
    """Return a region as in a sidecar; `phrase`, `label`, `score`, `slice` and `source` are additions of our export."""
    region = {
        "format": "xywh",
        "unit": "pixel",
        "phrase": entry.get("phrase", entry.get("caption", category.phrase)),
        "label": entry.get("label", category.name),
        "score": entry.get("score", 1.0),
        "slice": entry.get("slice", CROWD if crowd else category.slice),
        "source": entry.get("source", ""),
    }
    return {**region, "box": entry["bbox"]} if "bbox" in entry else region


def _region_row(entry: Mapping[str, Any], category: Category, *, crowd: bool) -> dict[str, object]:
    area = entry.get("area")
    # Bounded: an export could not write NaN as JSON, and float() raises OverflowError on longer integers.
    is_valid = isinstance(area, int | float) and not isinstance(area, bool) and abs(area) < 1e15
    return {
        "annotation_id": get_integer(entry, "id"),
        "category_id": category.number,
        "iscrowd": int(crowd),
        "area": float(area) if is_valid else None,
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
