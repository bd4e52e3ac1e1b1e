"""Import COCO: an instances file, a captions file next to it, and a folder of images.

The key of an image is its `file_name` without extension. A category becomes the label and the phrase of a region.
Captions have the kind "caption", crowd boxes the slice "crowd"; outlines are left out. The ids of the file are stored
in the tables `coco_images`, `coco_regions`, `coco_captions` and `coco_categories`, so that
`foveate.records.exporters.coco` can write them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError, nearest
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coco_file import (
    CocoFile,
    CocoImage,
    fill_sample,
    is_camera_traps,
    is_coco,
    read_coco,
    read_head,
)
from foveate.records.importers.files import file_sample, locate_file, make_key
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.json_files import find_image_folder
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.rows import clean_text, storable
from foveate.records.writer import CollectionWriter


def import_coco(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    captions: str | Path | None = None,
    group_by: str = "none",
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images of a COCO annotation file, with boxes and captions, into the collection `target`.

    Args:
        source: an instances or captions file, or a folder that has one, directly or in `annotations`.
        target: collection folder; created if it does not exist.
        images: folder of images; by default searched near the file.
        captions: captions file; by default `captions_X.json` next to `instances_X.json`.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: there is no file or more than one, a file is damaged, or no image is found.
    """
    path = find_annotation_file(Path(source), ("instances*.json", "_annotations.coco.json"))
    captions_path = path.with_name(path.name.replace("instances", "captions", 1))
    if captions is not None:
        texts: Path | None = check_source(Path(captions))
    else:
        # A file without "instances" in its name would be its own captions file.
        texts = captions_path if captions_path != path and captions_path.is_file() else None
    read = read_coco(path, texts)
    return import_coco_file(path, read, target, _names, images=images, group_by=group_by, reference=reference, **shared)


def import_coco_file(
    path: Path,
    read: CocoFile,
    target: str | Path,
    names: Callable[[CocoImage], list[object]],
    *,
    images: str | Path | None,
    group_by: str,
    reference: bool,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import what was read of the annotation file `path`; `names` returns possible file names of an image."""
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


def _names(image: CocoImage) -> list[object]:
    return [image.entry.get("file_name")]


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
    path = Path(source)
    if path.is_dir():
        paths = _list_annotation_files(path, ("instances*.json", "_annotations.coco.json"))
        return paths[0].name if paths else None
    # LVIS has the same fields; only the name of its files identifies it.
    if path.suffix.lower() != ".json" or not path.is_file() or path.name.startswith("lvis"):
        return None
    head = read_head(path)
    # Other formats of JSON that have "images" or "annotations" too: conversations, VQA, MDETR's RefCOCO, MegaDetector.
    others = (b'"conversations"', b'"messages"', b'"questions"', b'"dataset_name"', b'"detections"')
    if any(field in head for field in others) or is_camera_traps(head):
        return None
    return "annotations of images in JSON" if is_coco(head) else None


FORMAT = Format(
    name="coco",
    run=import_coco,
    recognize=_recognize,
    options=("images", "captions", "group_by", "reference"),
)
