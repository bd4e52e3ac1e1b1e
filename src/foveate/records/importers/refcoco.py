"""Import referring expressions as JSON: RefCOCO, RefCOCO+ and RefCOCOg, a question "where is ..." for each.

Two layouts: COCO's with a caption in each entry of `images` (`finetune_refcoco_val.json`, of MDETR and Ferret), and the
data set's references, converted from their pickle, beside its `instances.json`. Boxes are pixels, as in COCO.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, Unpack

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    Draft,
    FileImage,
    MalformedEntryError,
    import_conversations,
    make_drafts,
    read_head,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source
from foveate.records.importers.json_files import get_list, get_stated_size, is_number, read_annotations
from foveate.records.importers.sample import SharedOptions

_PICKLES = frozenset((".p", ".pkl", ".pickle"))
_FOLDERS = ("train2014", "COCO_train2014", "images/train2014", "coco/train2014")
_PROMPTS = ("Where is {x}?", "Find {x}.", "{x}: where is it?", "In the image, where is {x}?", "Show {x} in the image.")


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression.

    Args:
        names: possible file names of its image. size: width and height in pixels, if the file states it.
        dataset: "refcoco", "refcoco+", "refcocog" or another name in the file.
        problem: the reason why it cannot be used; "" for none.
    """

    id: str
    names: tuple[str, ...]
    size: tuple[int, int] | None
    phrase: str
    box: PixelBox | None
    dataset: str = ""
    split: str = ""
    problem: str = ""


def read_expressions(path: Path) -> list[Expression]:
    """Read all expressions of a file of either layout.

    Raises:
        UserError: it is a pickle, damaged, or of another layout, or `instances.json` is missing.
    """
    if path.suffix.lower() in _PICKLES:
        # A subclass without `find_class` loads lists, objects, texts and numbers, and raises TypeError at all else.
        code = (
            "import json, pickle; Plain = type('Plain', (pickle.Unpickler,), {'find_class': None}); "
            f"json.dump(Plain(open({str(path)!r}, 'rb')).load(), open({str(path.with_suffix('.json'))!r}, 'w'))"
        )
        raise UserError(
            f"{path} is a pickle, which can run any code when it is loaded; expected JSON. Convert it without running "
            f"code of the file (a TypeError means that it has some; do not load it then): python -c {shlex.quote(code)}"
        )
    content = read_annotations(path)
    if isinstance(content, list):
        return _read_references(content, path)
    annotations = _index(get_list(content, "annotations", path), "image_id")
    images = [entry if isinstance(entry, Mapping) else {} for entry in get_list(content, "images", path)]
    return [
        _read_image(entry, _look_up(annotations, entry, "id").get("bbox"), number)
        for number, entry in enumerate(images)
    ]


def _index(entries: list[Any], name: str) -> dict[int | str, Mapping[str, Any]]:
    """Index entries by an id, which may be missing or of any type; the first of equal ids counts."""
    index: dict[int | str, Mapping[str, Any]] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and _is_id(entry.get(name)):
            index.setdefault(entry[name], entry)
    return index


def _look_up(index: Mapping[int | str, Mapping[str, Any]], entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    id = entry.get(name)
    return index.get(id, {}) if _is_id(id) else {}


def _is_id(value: object) -> TypeGuard[int | str]:
    # JSON's true is an integer for Python.
    return isinstance(value, int | str) and not isinstance(value, bool)


def _read_image(entry: Mapping[str, Any], box: object, number: int) -> Expression:
    name = entry.get("file_name")
    return _make(
        str(entry.get("id", number)),
        name,
        get_stated_size(entry),
        entry.get("caption"),
        box,
        dataset=str(entry.get("dataset_name") or ""),
    )


def _read_references(references: list[object], path: Path) -> list[Expression]:
    instances = path.parent / "instances.json"
    if not instances.is_file():
        raise UserError(f"{path}: no instances.json beside it; expected the boxes of its references")
    content = read_annotations(instances)
    boxes, images = (_index(get_list(content, name, instances), "id") for name in ("annotations", "images"))
    # The reference files of RefCOCO and RefCOCO+ share a name; only their folders differ.
    dataset = path.parent.name if path.parent.name.startswith("refcoco") else ""
    expressions = []
    for number, reference in enumerate(references):
        reference = reference if isinstance(reference, Mapping) else {}
        image, annotation = _look_up(images, reference, "image_id"), _look_up(boxes, reference, "ann_id")
        sentences = reference.get("sentences")
        # One None if the list is missing, so that the reference is reported instead of skipped.
        for position, sentence in enumerate(sentences if isinstance(sentences, list) else [None]):
            text = sentence.get("sent", sentence.get("raw")) if isinstance(sentence, Mapping) else None
            expressions.append(
                _make(
                    f"{reference.get('ref_id', number)}/{position}",
                    image.get("file_name"),
                    get_stated_size(image),
                    text,
                    annotation.get("bbox"),
                    dataset=dataset,
                    split=str(reference.get("split") or ""),
                )
            )
    return expressions


def _make(
    id: str, name: object, size: tuple[int, int] | None, phrase: object, box: object, *, dataset: str, split: str = ""
) -> Expression:
    sides = box if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) else None
    problem = (
        f"{id}: no file name of its image"
        if not isinstance(name, str) or not name
        else f"{id}: no caption"
        if not isinstance(phrase, str) or not phrase.strip()
        else f"{id}: no box of four numbers (got {str(box)[:60]})"
        if sides is None
        else ""
    )
    corners = None
    if sides is not None:
        x, y, width, height = map(float, sides)
        corners = PixelBox(x, y, x + width, y + height)
    name = name if isinstance(name, str) else ""
    # List the name without folders, too: the images may lie flat in the folder that the user gives.
    names = tuple(dict.fromkeys((name, name.rpartition("/")[2]))) if name else ()
    return Expression(id, names, size, phrase if isinstance(phrase, str) else "", corners, dataset, split, problem)


def import_refcoco(
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    data_group: str | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import expressions and images into the collection `target`: a question and a box for each expression.

    Args:
        source: the file; see the module.
        images: folder of COCO's images; by default searched near the file.
        data_group, reference: see `foveate.records.importers.settings.FormatOptions`.
        shared: see `SharedOptions`.

    Raises:
        UserError: see `read_expressions`; or no image is found.
    """
    path = check_source(Path(source))
    entries = ((str(number), {"id": e.id, "expression": e}) for number, e in enumerate(read_expressions(path)))
    drafts = make_drafts(entries, lambda entry: _draft(entry["expression"]))
    return import_conversations(
        path,
        target,
        drafts,
        images=images,
        folders=_FOLDERS,
        coordinates="pixels",
        data_group=data_group,
        reference=reference,
        **shared,
    )


def _draft(expression: Expression) -> Draft:
    if expression.problem or expression.box is None:
        raise MalformedEntryError(expression.problem)
    # Drawn by expression, not by position, so that a repeated import asks the same.
    prompt = _PROMPTS[int(seeds.uniform("refcoco", expression.id, expression.phrase) * len(_PROMPTS))]
    question = Turn("user", f"{IMAGE}\n{prompt.format(x=expression.phrase.strip())}")
    answer = Turn("assistant", REGION, (expression.box,))
    return Draft("", [FileImage(expression.names)], [question, answer], stated=expression.size)


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_file() and path.suffix.lower() in _PICKLES and path.name.startswith("refs("):
        # Recognized only to be refused with the command that converts it.
        return "a pickle of references"
    head = read_head(source, ".json")
    if b'"dataset_name"' in head and b'"caption"' in head:
        return "captions with 'dataset_name'"
    return "references with 'sentences'" if b'"ref_id"' in head and b'"sentences"' in head else None


FORMAT = Format(name="refcoco", run=import_refcoco, recognize=_recognize, options=("images", "data_group", "reference"))
