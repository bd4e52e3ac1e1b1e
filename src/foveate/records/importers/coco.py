"""Import COCO and LVIS: an instances file, a captions file next to it, and a folder of images.

The key of an image is its `file_name` without extension. A category becomes the label and the phrase of a region.
Captions have the kind "caption", crowd boxes the slice "crowd"; outlines are left out. The ids of the file are stored
in the tables `coco_images`, `coco_regions`, `coco_captions` and `coco_categories`, so that
`foveate.records.exporters.coco` can write them again.

LVIS has boxes of 1,203 categories on COCO's images, in the same format. The phrase of a category is its name with
blanks for "_"; synonyms, definition and frequency are stored in `coco_categories`, and the frequency ("rare", "common",
"frequent") is the slice of its regions, the group that LVIS reports by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from foveate.core.errors import UserError, nearest
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import (
    file_sample,
    find_image_folder,
    get_integer,
    get_list,
    get_stated_size,
    locate_file,
    make_finding,
    make_key,
    read_annotations,
    read_head,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.rows import clean_text, storable
from foveate.records.writer import CollectionWriter

CROWD = "crowd"
_COCO_PATTERNS = ("instances*.json", "_annotations.coco.json")
_LVIS_PATTERNS = ("lvis*.json",)
_OUTLINES = "outlines (polygons or RLE) left out; their boxes are used"
# Plain COCO has none of these; ids that are texts are those of camera traps, too.
_TRAPS = re.compile(rb'"(seq_id|seq_num_frames|frame_num|sequence_level_annotation)"|"(location|image_id)"\s*:\s*"')
_CROWDS = f"crowd boxes (iscrowd) imported, with the slice {CROWD!r}"


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


def import_coco(
    source: str | Path, target: str | Path, *, captions: str | Path | None = None, **options: Any
) -> ImportSummary:
    """Import the images of a COCO annotation file, with boxes and captions, into the collection `target`.

    Args:
        source: an instances or captions file, or a folder that has one, directly or in `annotations`.
        captions: captions file; by default `captions_X.json` next to `instances_X.json`.
        options: see `import_coco_file`.

    Raises:
        UserError: there is no file or more than one, a file is damaged, or no image is found.
    """
    path = find_annotation_file(Path(source), _COCO_PATTERNS)
    captions_path = path.with_name(path.name.replace("instances", "captions", 1))
    if captions is not None:
        texts: Path | None = check_source(Path(captions))
    else:
        # A file without "instances" in its name would be its own captions file.
        texts = captions_path if captions_path != path and captions_path.is_file() else None
    return import_coco_file(path, read_coco(path, texts), target, _list_names, **options)


def import_lvis(
    source: str | Path, target: str | Path, *, captions: str | Path | None = None, **options: Any
) -> ImportSummary:
    """Import the images of an LVIS file, with their boxes, into the collection `target`.

    Images are named by the last two parts of `coco_url` (`train2017/000000391895.jpg`), also their key, or by
    `file_name` in older files.

    Args:
        source: the file (`lvis_v1_val.json`), or a folder that has one, directly or in `annotations`.
        captions: a COCO captions file with the same image ids.
        options: see `import_coco_file`; `images` is the folder that has `train2017` and `val2017`, or the images.

    Raises:
        UserError: there is no file or more than one, a file is damaged, or no image is found.
    """
    path = find_annotation_file(Path(source), _LVIS_PATTERNS)
    read = read_coco(path, None if captions is None else check_source(Path(captions)))
    return import_coco_file(path, read, target, _list_lvis_names, **options)


def import_coco_file(
    path: Path,
    read: CocoFile,
    target: str | Path,
    names: Callable[[CocoImage], list[object]],
    *,
    images: str | Path | None = None,
    group_by: str = "none",
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import what was read of an annotation file into the collection `target`.

    Args:
        path: of the file.
        target: collection folder; created if it does not exist.
        names: returns possible file names of an image.
        images: folder of images; by default searched near the file.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.
    """
    if not read.images:
        raise UserError(f"{path}: field 'images' has no usable entry")
    requested = None if images is None else Path(images)
    listed = [names(image) for image in read.images.values()]
    root = find_image_folder(listed, _list_image_folders(path), source=path, requested=requested)

    def keep_categories(writer: CollectionWriter) -> None:
        # Skipped if no image was imported: no region would have these categories.
        if writer.summary.imported or writer.summary.existing:
            writer.add_dataset_rows("coco_categories", [_clean(category.row) for category in read.categories.values()])

    return import_samples(
        target,
        _samples(path, read, root, names),
        default_source=path.stem,
        total=len(read.findings) + len(read.images),
        group_by=group_by,
        reference=reference,
        further=read.further,
        finish=keep_categories,
        **shared,
    )


def _clean(row: Mapping[str, object]) -> dict[str, object]:
    """Return the row with storable texts, also inside of lists."""

    def clean(value: object) -> object:
        if isinstance(value, list):
            return [clean(item) for item in value]
        return clean_text(storable(value)) if isinstance(value, str) else value

    return {name: clean(value) for name, value in row.items()}


def _list_names(image: CocoImage) -> list[object]:
    return [image.entry.get("file_name")]


def _list_lvis_names(image: CocoImage) -> list[object]:
    url = image.entry.get("coco_url")
    # Version 1 has no file_name, and its validation images are from train2017, too: only the URL states the folder.
    if isinstance(url, str) and url.count("/") >= 2:
        folder, name = url.split("/")[-2:]
        return [f"{folder}/{name}", name]
    return _list_names(image)


def _samples(path: Path, read: CocoFile, root: Path, names: Callable[[CocoImage], list[object]]) -> Iterator[Sample]:
    yield from read.findings
    for image in read.images.values():
        options = names(image)
        # LVIS gives two names: images may be unpacked with the folder of their URL or without it.
        locations = [locate_file(name, root) for name in options]
        existing = (entry for entry in locations if not isinstance(entry, Problem) and entry[1].is_file())
        below = next(existing, None)
        sample = file_sample(options[0] if below is None else below[0], root, source=f"{path.name}: {options[0]}"[:400])
        if not isinstance(locations[0], Problem):
            # From the name in the file, so that the key does not depend on where the images are today.
            sample.key = make_key(locations[0][0])
        if not sample.only_problems:
            sample = fill_sample(image, read, sample, file_name=str(options[0]))
        yield sample


def find_annotation_file(source: Path, patterns: tuple[str, ...]) -> Path:
    """Return the annotation file that `source` is or has; raise UserError if it has none or several."""
    source = check_source(source)
    if not source.is_dir():
        return source
    paths = _list_annotation_files(source, patterns)
    if not paths:
        names = [path.name for folder in (source, source / "annotations") for path in folder.glob("*.json")]
        hint = nearest(patterns[0], names)
        raise UserError(f"{source} has no annotation file: looked for {' and '.join(patterns)}{hint}")
    if len(paths) > 1:
        listed = ", ".join(map(str, paths))
        raise UserError(f"{source} has several annotation files; choose one of {listed}")
    return paths[0]


def _list_annotation_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    folders = (folder, folder / "annotations")
    paths = (path for parent in folders for pattern in patterns for path in parent.glob(pattern))
    return sorted(path for path in paths if path.is_file())


def _list_image_folders(path: Path) -> list[Path]:
    """List folders that usually have the images of an annotation file."""
    # As COCO is unpacked: annotations/instances_val2017.json next to val2017 or images/val2017.
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    part = path.stem.partition("_")[2]
    inner = [above / "images" / part, above / part] if part else []
    return [*inner, above / "images", above, path.parent / "images", path.parent]


def _recognize(source: str) -> str | None:
    if Path(source).is_dir():
        return next((path.name for path in _list_annotation_files(Path(source), _COCO_PATTERNS)), None)
    # LVIS has the same fields; only the name of its files identifies it.
    if Path(source).name.startswith("lvis"):
        return None
    head = read_head(source, ".json")
    # Other formats of JSON that have "images" or "annotations" too: conversations, VQA, MDETR's RefCOCO, MegaDetector.
    others = (b'"conversations"', b'"messages"', b'"questions"', b'"dataset_name"', b'"detections"')
    if any(field in head for field in others) or is_camera_traps(head):
        return None
    return "annotations of images in JSON" if is_coco(head) else None


def _recognize_lvis(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        return next((file.name for file in _list_annotation_files(path, _LVIS_PATTERNS)), None)
    return path.name if path.is_file() and path.match(_LVIS_PATTERNS[0]) else None


_OPTIONS = ("images", "captions", "group_by", "reference")
FORMATS = (
    Format(name="coco", run=import_coco, recognize=_recognize, options=_OPTIONS),
    Format(name="lvis", run=import_lvis, recognize=_recognize_lvis, options=_OPTIONS),
)
