"""Import Visual Genome: `image_data.json`, the folders VG_100K and VG_100K_2, and one of three files.

The key of an image is its number in the data set. Of `region_descriptions.json` each described region becomes a region
with its phrase, of `objects.json` each object one with its first name; `relationships.json` gives a conversation about
each image, whose questions point at two objects and whose answers relate them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, ConversationProblem, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import Draft, FileImage, import_conversations
from foveate.records.importers.files import (
    file_sample,
    find_image_folder,
    get_integer,
    get_stated_size,
    is_number,
    make_finding,
    read_annotations,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import Sample, SharedOptions

_REGIONS = "region_descriptions.json"
_OBJECTS = "objects.json"
_RELATIONS = "relationships.json"
_IMAGES = "image_data.json"
_MAX_RELATIONS = 10  # turns of a conversation
_RELATION_PROMPTS = (
    "How is <region> related to <region>?",
    "<region> and <region>: how are they related?",
    "What relation does <region> have to <region>?",
)
_FOLDERS = ("VG_100K", "VG_100K_2", "images/VG_100K", "images2/VG_100K_2", "images", "")


class _CompactRegion(NamedTuple):
    """A region while the file is read, in a third of the memory of its JSON object."""

    phrase: object
    box: tuple[object, ...]


def import_visual_genome(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    reference: bool = False,
    data_group: str | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images of Visual Genome, with their regions or relations, into the collection `target`.

    Both files are read into memory, which needs three times their size (measured on 80 MB, so about 2.2 GB for the 720
    MB of the data set).

    Args:
        source: the folder that has the files, then its descriptions are read; or one of the files.
        target: collection folder; created if it does not exist.
        images: the folder that has VG_100K and VG_100K_2, or the images; by default `source`.
        reference: see `foveate.records.importers.folder.import_folder`.
        data_group: of the conversations; only with `relationships.json`.
        shared: see `SharedOptions`.

    Raises:
        UserError: a file is missing or damaged, or no image is found.
    """
    source = check_source(Path(source))
    folder = source if source.is_dir() else source.parent
    annotated = source.name if source.is_file() and source.name != _IMAGES else _REGIONS
    if data_group is not None and annotated != _RELATIONS:
        raise UserError(f"--data-group has no effect: {annotated} gives regions; expected {_RELATIONS}")
    for name in (annotated, _IMAGES):
        if not (folder / name).is_file():
            names = [path.name for path in folder.glob("*.json*")]
            raise UserError(f"{folder} has no {name}{nearest(name, names)}")
    entries = _check_list(read_annotations(folder / _IMAGES), folder / _IMAGES)
    if annotated == _RELATIONS:
        by_number = {_get_number(entry): entry for entry in entries if isinstance(entry, Mapping)}
        relations = _check_list(read_annotations(source), source)
        drafts = [_draft_image(entry, by_number, position) for position, entry in enumerate(relations)]
        # The same source name as for regions and objects, whose images these are.
        shared["source_name"] = shared.get("source_name") or "visual-genome"
        return import_conversations(
            source,
            target,
            drafts,
            images=images,
            coordinates="pixels",
            data_group=data_group,
            reference=reference,
            **shared,
        )
    described = _check_list(read_annotations(folder / annotated, _compact), folder / annotated)
    regions, findings = _group_by_image(described, annotated)
    names = [_list_file_names(entry) for entry in entries if isinstance(entry, dict)]
    requested = None if images is None else Path(images)
    root = find_image_folder(names, [folder], source=folder / _IMAGES, requested=requested)
    return import_samples(
        target,
        _samples(entries, regions, findings, root, annotated),
        default_source="visual-genome",
        total=len(entries) + len(findings),
        reference=reference,
        **shared,
    )


def _check_list(content: object, path: Path) -> list[Any]:
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects (got {type(content).__name__})")
    return content


def _compact(entry: dict[str, Any]) -> object:
    # The parser hands over every object, inner ones first; only those of regions look like this.
    if "phrase" in entry and "width" in entry and "regions" not in entry:
        return _CompactRegion(entry["phrase"], tuple(entry.get(name) for name in ("x", "y", "width", "height")))
    if "object_id" in entry and "w" in entry:
        return _CompactRegion(_get_name(entry), tuple(entry.get(name) for name in ("x", "y", "w", "h")))
    return entry


def _get_name(entry: Mapping[str, Any]) -> object:
    """Return the name of an object, which files give as `name` or as a list `names`."""
    names = entry.get("names")
    return names[0] if isinstance(names, list) and names else entry.get("name")


def _draft_image(entry: object, images: Mapping[int | None, Mapping[str, Any]], position: int) -> Draft:
    number = _get_number(entry) if isinstance(entry, Mapping) else None
    relations = entry.get("relationships") if isinstance(entry, Mapping) else None
    if number is None or not isinstance(relations, list) or number not in images:
        detail = f"{_RELATIONS}[{position}]: expected an image of {_IMAGES} and a list 'relationships'"
        return Draft(str(position), finding=ConversationProblem("malformed entry", detail))
    turns: list[Turn] = []
    for relation in relations[:_MAX_RELATIONS]:
        turns += _ask_relation(relation, f"{number}/{len(turns)}")
    if not turns:
        return Draft(
            str(number), finding=ConversationProblem("no relations", f"image {number} has none between two boxes")
        )
    # A conversation has one placeholder per image, and the first question has to show it.
    turns[0] = replace(turns[0], text=f"{IMAGE}\n{turns[0].text}")
    names = tuple(map(str, _list_file_names(images[number])))
    # The same key as for regions, so that both belong to one image of a collection.
    return Draft(str(number), [FileImage(names, key=str(number))], turns, stated=get_stated_size(images[number]))


def _ask_relation(relation: object, id: str) -> list[Turn]:
    """Return a question about two objects and its answer; nothing if a name, the predicate or a box is missing."""
    if not isinstance(relation, Mapping) or not isinstance(relation.get("predicate"), str):
        return []
    # Annotators wrote predicates in any case, such as ON and on.
    predicate = " ".join(relation["predicate"].lower().split())
    boxes = [_read_box(relation.get(part)) for part in ("subject", "object")]
    if not predicate or None in boxes:
        return []
    # Image and turn seed the draw of the prompt, so that a repeated import asks the same question.
    prompt = _RELATION_PROMPTS[int(seeds.uniform("visual-genome", id) * len(_RELATION_PROMPTS))]
    return [Turn("user", prompt, tuple(box for box in boxes if box)), Turn("assistant", predicate)]


def _read_box(entry: object) -> PixelBox | None:
    sides = [entry.get(name) for name in ("x", "y", "w", "h")] if isinstance(entry, Mapping) else []
    # `is_number` first: float() lets NaN pass, and raises OverflowError on integers beyond its range.
    usable = [float(side) for side in sides if isinstance(side, int | float) and is_number(side)]
    if len(usable) != 4 or max(map(abs, usable)) >= 2**31:
        return None
    x, y, width, height = usable
    return PixelBox(x, y, x + width, y + height) if width > 0 and height > 0 else None


def _group_by_image(described: list[Any], file: str) -> tuple[dict[int, list[Any]], list[Sample]]:
    """Group regions by the number of their image; also return findings about unusable entries."""
    regions: dict[int, list[Any]] = {}
    findings = []
    for position, entry in enumerate(described):
        number = _get_number(entry) if isinstance(entry, Mapping) else None
        field = "objects" if file == _OBJECTS else "regions"
        if number is None or not isinstance(entry.get(field), list):
            detail = f"an entry must have an integer 'id' and a list '{field}'"
            findings.append(make_finding(f"{file}[{position}]", file, "region", "malformed entry", detail))
        else:
            regions.setdefault(number, []).extend(entry[field])
    return regions, findings


def _get_number(entry: Mapping[str, Any]) -> int | None:
    return get_integer(entry, "image_id" if "image_id" in entry else "id")


def _list_file_names(entry: Mapping[str, Any]) -> list[object]:
    """List possible file names of an image, first with the folder of its URL."""
    number, url = _get_number(entry), entry.get("url")
    parts = url.split("/")[-2:] if isinstance(url, str) and url.count("/") >= 2 else []
    # The URL's folder distinguishes VG_100K from VG_100K_2; ignore it if the file in the URL has another number.
    stated = ["/".join(parts)] if parts and parts[1].rpartition(".")[0] == str(number) else []
    return [*stated, *(f"{folder}/{number}.jpg".lstrip("/") for folder in _FOLDERS)]


def _samples(
    images: list[Any], regions: dict[int, list[Any]], findings: list[Sample], root: Path, file: str
) -> Iterator[Sample]:
    yield from findings
    unused = set(regions)
    seen: set[int] = set()
    for position, entry in enumerate(images):
        number = _get_number(entry) if isinstance(entry, Mapping) else None
        where = f"{_IMAGES}[{position}]"
        if number is None:
            detail = "an entry must be an object with an integer 'image_id'"
            yield make_finding(where, _IMAGES, "image", "malformed entry", detail)
            continue
        unused.discard(number)
        if number in seen:
            detail = f"an earlier entry has the id {number} and is kept"
            yield make_finding(where, _IMAGES, "image", "duplicate id", detail)
            continue
        seen.add(number)
        yield _sample(number, entry, regions.get(number, []), root)
    for number in sorted(unused):
        detail = f"it has {len(regions[number])} regions but no entry in {_IMAGES}"
        yield make_finding(str(number), file, "region", "unknown image", detail)


def _sample(number: int, entry: Mapping[str, Any], regions: list[Any], root: Path) -> Sample:
    names = _list_file_names(entry)
    # If no file exists, use the first name, so that the finding names the missing file.
    below = next((str(name) for name in names if (root / str(name)).is_file()), str(names[0]))
    sample = file_sample(below, root, source=f"{_IMAGES}: {number}")
    sample.key = str(number)
    url = entry.get("url")
    sample.fields = {
        "regions": [_make_region(region) for region in regions],
        "url": url if isinstance(url, str) else "",
    }
    sample.stated_size = get_stated_size(entry)
    return sample


def _make_region(raw: object) -> object:
    if not isinstance(raw, _CompactRegion):
        return raw
    return {"phrase": raw.phrase, "box": list(raw.box), "format": "xywh", "unit": "pixel"}


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_dir():
        return _REGIONS if (path / _REGIONS).is_file() else None
    return path.name if path.is_file() and path.name in (_REGIONS, _OBJECTS, _RELATIONS, _IMAGES) else None


FORMATS = (
    Format(
        name="visual-genome",
        run=import_visual_genome,
        recognize=_recognize,
        options=("images", "data_group", "reference"),
    ),
)
