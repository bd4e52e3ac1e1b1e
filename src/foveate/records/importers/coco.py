"""Import COCO: an instances file, a captions file beside it, and a folder of images.

An image's key is its `file_name` without the ending. A category becomes the region's label and phrase.
Captions have the kind "caption". Crowd boxes are taken with the slice "crowd". Outlines are left out. The ids
of the file are kept in the tables `coco_images`, `coco_regions`, `coco_captions` and `coco_categories`, so that
`foveate.records.exporters.coco` writes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError, nearest
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.coco_file import CocoFile, CocoImage, describe, read_coco
from foveate.records.importers.files import file_sample, key_of, place_of
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.json_files import folder_with
from foveate.records.importers.sample import Problem, Sample, SharedOptions
from foveate.records.rows import clean_text, storable
from foveate.records.writer import CollectionWriter

_HEAD_BYTES = 65536


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
    """Take the images of a COCO annotation file, with boxes and captions, into the collection `target`.

    Args:
        source: an instances or captions file, or a folder that has one, itself or in its folder `annotations`.
        target: collection folder, made where it does not exist.
        images: folder of the images; by default looked for beside the file.
        captions: captions file; by default `captions_X.json` beside `instances_X.json`.
        group_by, reference: see `foveate.records.importers.folder.import_folder`.
        shared: see `SharedOptions`.

    Raises:
        UserError: no file or more than one is there, a file is damaged, or no image is found.
    """
    path = annotation_file(Path(source), ("instances*.json", "_annotations.coco.json"))
    beside = path.with_name(path.name.replace("instances", "captions", 1))
    if captions is not None:
        texts: Path | None = check_source(Path(captions))
    else:
        texts = beside if beside != path and beside.is_file() else None
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
    """Take what was read of the annotation file `path`; `names` gives the file names an image may have."""
    if not read.images:
        raise UserError(f"{path}: 'images' has no entry that can be used")
    given = None if images is None else Path(images)
    listed = [names(image) for image in read.images.values()]
    root = folder_with(listed, _candidates(path), source=path, given=given)

    def keep_categories(writer: CollectionWriter) -> None:
        if writer.summary.taken or writer.summary.already_there:
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
    """The row with texts that can be stored, its lists of texts too."""

    def clean(value: object) -> object:
        if isinstance(value, list):
            return [clean(one) for one in value]
        return clean_text(storable(value)) if isinstance(value, str) else value

    return {name: clean(value) for name, value in row.items()}


def _names(image: CocoImage) -> list[object]:
    return [image.entry.get("file_name")]


def _samples(path: Path, read: CocoFile, root: Path, names: Callable[[CocoImage], list[object]]) -> Iterator[Sample]:
    yield from read.findings
    for image in read.images.values():
        options = names(image)
        places = [place_of(name, root) for name in options]
        there = (place for place in places if not isinstance(place, Problem) and place[1].is_file())
        below = next(there, None)
        sample = file_sample(options[0] if below is None else below[0], root, source=f"{path.name}: {options[0]}"[:400])
        if not isinstance(places[0], Problem):
            # The key does not depend on where the images lie today.
            sample.key = key_of(places[0][0])
        if not sample.only_problems:
            sample = describe(image, read, sample, file_name=str(options[0]))
        yield sample


def annotation_file(source: Path, patterns: tuple[str, ...]) -> Path:
    """The annotation file that `source` is, or the only one in it. Raises UserError for none or several."""
    source = check_source(source)
    if not source.is_dir():
        return source
    found = _annotation_files(source, patterns)
    if not found:
        there = [one.name for folder in (source, source / "annotations") for one in folder.glob("*.json")]
        hint = nearest(patterns[0], there)
        raise UserError(f"{source} has no annotation file: looked for {' and '.join(patterns)}{hint}")
    if len(found) > 1:
        listed = ", ".join(str(one) for one in found)
        raise UserError(f"{source} has several annotation files: give one of {listed}")
    return found[0]


def _annotation_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    places = (folder, folder / "annotations")
    return sorted(one for place in places for pattern in patterns for one in place.glob(pattern) if one.is_file())


def _candidates(path: Path) -> list[Path]:
    """Folders in which the images of an annotation file usually lie."""
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    part = path.stem.partition("_")[2]
    inner = [above / "images" / part, above / part] if part else []
    return [*inner, above / "images", above, path.parent / "images", path.parent]


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        found = _annotation_files(path, ("instances*.json", "_annotations.coco.json"))
        return found[0].name if found else None
    if path.suffix.lower() != ".json" or not path.is_file() or path.name.startswith("lvis"):
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return "annotations of images in JSON" if b'"images"' in head or b'"annotations"' in head else None


FORMAT = Format(
    name="coco",
    run=import_coco,
    recognize=_recognize,
    options=("images", "captions", "group_by", "reference"),
)
