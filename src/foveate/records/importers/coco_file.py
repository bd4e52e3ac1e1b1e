"""Annotation files in COCO's form (instances, captions, or both), read into one entry per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.records.importers.json_files import finding, list_of, read_annotations, stated_size, whole_number
from foveate.records.importers.sample import Problem, Sample

CROWD = "crowd"
_OUTLINES = "outlines (polygons or RLE) left out; the boxes beside them are used"
_CROWDS = f"crowd boxes (iscrowd) taken, with the slice {CROWD!r}"


@dataclass(frozen=True, slots=True)
class Category:
    """A category of the file, with the words that stand for it as a phrase."""

    number: int
    name: str
    phrase: str
    slice: str
    row: Mapping[str, object]


@dataclass(slots=True)
class CocoImage:
    """One image of the file with its annotations, unchecked beyond their ids."""

    number: int
    entry: Mapping[str, Any]
    annotations: list[Mapping[str, Any]] = field(default_factory=list)
    captions: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class CocoFile:
    """What one or two annotation files hold. `findings` are about entries that belong to no image."""

    images: dict[int, CocoImage] = field(default_factory=dict)
    categories: dict[int, Category] = field(default_factory=dict)
    findings: list[Sample] = field(default_factory=list)
    further: Counter[str] = field(default_factory=Counter)


def read_coco(path: Path, captions: Path | None = None) -> CocoFile:
    """Read an annotation file and, beside it, one with captions.

    Memory: twice the size of the file (measured on a file of 78 MB); outlines are dropped as
    they are read. Entries that cannot be used become findings.

    Raises:
        UserError: a file cannot be read, is no JSON, or has not the lists "images" and "annotations".
    """
    read = CocoFile()
    content = read_annotations(path, _without_outline)
    _read_images(list_of(content, "images", path), read, path.name)
    annotations = list_of(content, "annotations", path)
    if any(isinstance(entry, dict) and "caption" not in entry for entry in annotations):
        _read_categories(list_of(content, "categories", path), read, path.name)
    _read_annotations(annotations, read, path.name)
    if captions is not None:
        content = read_annotations(captions, _without_outline)
        _read_annotations(list_of(content, "annotations", captions), read, captions.name)
    return read


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = bool(entry["segmentation"])
    return entry


def _read_images(entries: list[Any], read: CocoFile, source: str) -> None:
    for position, entry in enumerate(entries):
        number = whole_number(entry, "id") if isinstance(entry, dict) else None
        if number is None:
            detail = "an entry of 'images' must be an object whose 'id' is a whole number"
            read.findings.append(finding(f"images[{position}]", source, "image", "malformed entry", detail))
        elif number in read.images:
            detail = f"the id {number} is that of an earlier entry of 'images', which stays"
            read.findings.append(finding(f"images[{position}]", source, "image", "duplicate id", detail))
        else:
            read.images[number] = CocoImage(number, entry)


def _read_categories(entries: list[Any], read: CocoFile, source: str) -> None:
    for position, entry in enumerate(entries):
        number = whole_number(entry, "id") if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            detail = "an entry of 'categories' must have an 'id' that is a whole number and a 'name' with text"
        elif number in read.categories:
            detail = f"the id {number} is that of an earlier entry of 'categories', which stays"
        else:
            read.categories[number] = category_of(number, entry)
            continue
        read.findings.append(finding(f"categories[{position}]", source, "category", "malformed entry", detail))


def category_of(number: int, entry: Mapping[str, Any]) -> Category:
    """A category from an entry of the file, or from the row that is kept of it.

    COCO's categories have a supercategory; those of LVIS have synonyms, a definition and a frequency.
    """
    synonyms = [one for one in _list(entry.get("synonyms")) if isinstance(one, str) and one.strip()]
    name, frequency = entry["name"].strip(), _text(entry.get("frequency"))
    row = {
        "category_id": number,
        "name": name,
        "supercategory": _text(entry.get("supercategory")),
        "synonyms": synonyms,
        "definition": _text(entry.get("def", entry.get("definition"))),
        "frequency": frequency,
    }
    # LVIS writes "aerosol_can", which no person would; COCO's own names have blanks already.
    phrase = name.replace("_", " ") if synonyms else name
    return Category(number, name, phrase, {"r": "rare", "c": "common", "f": "frequent"}.get(frequency, ""), row)


def _read_annotations(entries: list[Any], read: CocoFile, source: str) -> None:
    seen: set[tuple[bool, int]] = set()
    for position, entry in enumerate(entries):
        place = f"annotations[{position}]"
        if not isinstance(entry, dict):
            detail = "an entry of 'annotations' must be an object"
            read.findings.append(finding(place, source, "region", "malformed entry", detail))
            continue
        is_caption, number = "caption" in entry, whole_number(entry, "id")
        image = read.images.get(whole_number(entry, "image_id") or 0)
        subject = "caption" if is_caption else "region"
        if image is None or image.number != entry.get("image_id"):
            detail = f"'image_id' is {str(entry.get('image_id'))[:40]}: there is no such entry in 'images'"
            read.findings.append(finding(place, source, subject, "unknown image", detail))
        elif number is not None and (is_caption, number) in seen:
            detail = f"the id {number} is that of an earlier entry of 'annotations', which stays"
            read.findings.append(finding(place, source, subject, "duplicate id", detail))
        else:
            if number is not None:
                seen.add((is_caption, number))
            (image.captions if is_caption else image.annotations).append(entry)


def describe(image: CocoImage, read: CocoFile, sample: Sample, *, file_name: str) -> Sample:
    """Put an image's captions and regions into its sample, with the ids that they have in the file."""
    captions, caption_rows = [], []
    for position, entry in enumerate(image.captions):
        if isinstance(entry["caption"], str):
            kind, source = _text(entry.get("kind")) or "caption", _text(entry.get("source"))
            captions.append({"text": entry["caption"], "kind": kind, "source": source})
            caption_rows.append({"annotation_id": whole_number(entry, "id")})
        else:
            sample.problems.append(Problem("caption", "not text", "field 'caption' must hold text", position))
    regions, region_rows = [], []
    for position, entry in enumerate(image.annotations):
        category = read.categories.get(whole_number(entry, "category_id") or 0)
        if category is None or category.number != entry.get("category_id"):
            detail = f"'category_id' is {str(entry.get('category_id'))[:40]}: there is no such entry in 'categories'"
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
    sample.stated_size = stated_size(image.entry)
    sample.extra = {"coco_images": [{"image_id": image.number, "file_name": file_name}]}
    sample.region_rows = ("coco_regions", region_rows)
    sample.caption_rows = ("coco_captions", caption_rows)
    read.further[_OUTLINES] += sum(entry.get("segmentation") is True for entry in image.annotations)
    read.further[_CROWDS] += sum(region["slice"] == CROWD for region in regions)
    return sample


def _region(entry: Mapping[str, Any], category: Category, *, crowd: bool) -> dict[str, Any]:
    """A sidecar's region. `phrase`, `label`, `score`, `slice` and `source` are what our own export adds."""
    region = {
        "format": "xywh",
        "unit": "pixel",
        "phrase": entry.get("phrase", category.phrase),
        "label": entry.get("label", category.name),
        "score": entry.get("score", 1.0),
        "slice": entry.get("slice", CROWD if crowd else category.slice),
        "source": entry.get("source", ""),
    }
    return {**region, "box": entry["bbox"]} if "bbox" in entry else region


def _region_row(entry: Mapping[str, Any], category: Category, *, crowd: bool) -> dict[str, object]:
    area = entry.get("area")
    usable = isinstance(area, int | float) and not isinstance(area, bool) and abs(area) < 1e15
    return {
        "annotation_id": whole_number(entry, "id"),
        "category_id": category.number,
        "iscrowd": int(crowd),
        "area": float(area) if usable else None,
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
