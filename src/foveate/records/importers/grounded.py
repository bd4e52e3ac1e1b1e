"""Import grounded texts: Flickr30k Entities, GRIT, and the referring expressions of RefCOCO, RefCOCO+ and RefCOCOg.

Flickr30k Entities has captions whose phrases have boxes, in `Sentences`, `Annotations` and the images. Each sentence
becomes a conversation whose answer is the sentence with the boxes of each phrase behind it. Boxes are pixels.
`train.txt`, `val.txt` and `test.txt` list the images of a part.

GRIT has entries of `caption`, and `noun_chunks` of [start, end, x1, y1, x2, y2, score]. Start and end are characters of
the caption; corners are fractions of the image unless --coordinates says otherwise.

Of RefCOCO each expression becomes a question "where is ...". Two layouts: COCO's with a caption in each entry of
`images` (`finetune_refcoco_val.json`, of MDETR and Ferret), and the data set's references, converted from their
pickle, beside its `instances.json`. Boxes are pixels, as in COCO.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard
from xml.etree import ElementTree

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, ConversationProblem, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    Draft,
    FileImage,
    MalformedEntryError,
    get_size,
    import_conversations,
    make_drafts,
    make_format,
    read_image_list,
)
from foveate.records.importers.files import get_list, get_stated_size, is_number, read_annotations, read_head
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source

IMAGE_FOLDERS = ("flickr30k-images", "flickr30k_images", "images")
PROMPTS = (
    "Describe the image, with a box for each thing.",
    "What does the image show? Box each thing that you name.",
    "Say what you see, and where each thing is.",
    "Name the things in the image in a sentence, each with its box.",
)
_PHRASE = re.compile(r"\[/EN#(\d{1,9})/(\S+) ([^\[\]]+)\]")
# Files of one image have a few kB; larger ones are refused before they are read.
_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class EntityPhrase:
    """A phrase of a sentence: its characters, categories and boxes in pixels; () for a phrase without a box."""

    start: int
    end: int
    categories: tuple[str, ...]
    boxes: tuple[PixelBox, ...]


@dataclass(frozen=True, slots=True)
class EntitySentence:
    """A sentence about an image, without its marks; `problem` is the reason why it cannot be used."""

    id: str
    image: str
    text: str = ""
    phrases: tuple[EntityPhrase, ...] = ()
    size: tuple[int, int] | None = None
    problem: str = ""


def read_sentences(folder: Path, part: str | None = None) -> list[EntitySentence]:
    """Read the sentences of a part, or of all images.

    Raises:
        UserError: the folder has no `Sentences` or `Annotations`, or no list of this part.
    """
    for name in ("Sentences", "Annotations"):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: no folder '{name}'; expected Flickr30k Entities")
    if part is None:
        ids = sorted(path.stem for path in (folder / "Sentences").glob("*.txt"))
    else:
        choose(part, [path.stem for path in folder.glob("*.txt")], f"part of {folder}")
        ids = (folder / f"{part}.txt").read_text(encoding="utf-8").split()
    return [sentence for id in ids for sentence in _read_sentences(folder, id)]


def _read_sentences(folder: Path, id: str) -> Iterator[EntitySentence]:
    try:
        lines = _read_text(folder / "Sentences" / f"{id}.txt").splitlines()
        size, boxes = read_boxes(folder / "Annotations" / f"{id}.xml")
    # One damaged file puts its image aside, not the whole import.
    except UserError as error:
        yield EntitySentence(f"{id}/0", f"{id}.jpg", problem=str(error))
        return
    for number, line in enumerate(lines):
        if line.strip():
            text, phrases = split_sentence(line, boxes)
            yield EntitySentence(f"{id}/{number}", f"{id}.jpg", text, phrases, size)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES >> 20} MiB; expected the sentences or boxes of one image")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def split_sentence(line: str, boxes: dict[str, list[PixelBox]]) -> tuple[str, tuple[EntityPhrase, ...]]:
    """Return a sentence without its marks, and its phrases.

    >>> split_sentence("[/EN#1/people A man] waits .", {})
    ('A man waits .', (EntityPhrase(start=0, end=5, categories=('people',), boxes=()),))
    """
    text, phrases, start = "", [], 0
    for match in _PHRASE.finditer(line):
        text += line[start : match.start()]
        phrase = EntityPhrase(
            len(text), len(text) + len(match[3]), tuple(match[2].split("/")), tuple(boxes.get(match[1], ()))
        )
        phrases.append(phrase)
        text += match[3]
        start = match.end()
    return text + line[start:].rstrip(), tuple(phrases)


def read_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[PixelBox]]]:
    """Read the size of an image and the boxes of each entity from its file of annotations.

    Raises:
        UserError: the file is damaged, or has a document type, with which XML can grow without limit.
    """
    text = _read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: has a document type; expected plain XML")
    try:
        root = ElementTree.fromstring(text)
        size = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
        boxes: dict[str, list[PixelBox]] = {}
        for thing in root.findall("object"):
            bounds = thing.find("bndbox")
            if bounds is not None:
                box = PixelBox(*(int(bounds.findtext(edge, "")) for edge in ("xmin", "ymin", "xmax", "ymax")))
                # One box may belong to several entities, and an entity may have several boxes.
                for name in thing.findall("name"):
                    boxes.setdefault(name.text or "", []).append(box)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path}: no annotations of Flickr30k Entities ({error})") from error
    if min(size) < 1:
        raise UserError(f"{path}: size {size[0]} x {size[1]}; expected at least 1 pixel")
    return size, boxes


def import_flickr_entities(
    source: str | Path, target: str | Path, *, part: str | None = None, **options: Any
) -> ImportSummary:
    """Import sentences with boxes, and their images, into the collection `target`.

    Args:
        source: the folder with `Sentences` and `Annotations`.
        part: only the images of this list ("train", "val", "test").
        options: see `import_conversations`.

    Raises:
        UserError: see `read_sentences`; or no image is found.
    """
    folder = check_source(Path(source))
    drafts = [_draft_sentence(sentence) for sentence in read_sentences(folder, part)]
    # The path passed below only locates the images; its name, "Sentences", would be a poor source name.
    options["source_name"] = options.get("source_name") or "flickr-entities"
    path = folder / "Sentences"
    return import_conversations(path, target, drafts, folders=IMAGE_FOLDERS, coordinates="pixels", **options)


def _draft_sentence(sentence: EntitySentence) -> Draft:
    problem = sentence.problem or ("" if any(p.boxes for p in sentence.phrases) else f"{sentence.id}: no boxes")
    if problem:
        return Draft(
            sentence.id, finding=ConversationProblem("malformed entry" if sentence.problem else "no boxes", problem)
        )
    spans = [(phrase.end, box) for phrase in sentence.phrases for box in phrase.boxes]
    text, boxes = place_regions(sentence.text, spans)
    # Draw by the id of the sentence, so that a repeated import asks the same question.
    prompt = PROMPTS[int(seeds.uniform("flickr-entities", sentence.id) * len(PROMPTS))]
    turns = [Turn("user", f"{IMAGE}\n{prompt}"), Turn("assistant", text, boxes)]
    # Pass the size of the annotations: boxes follow a resized copy of the image, and are refused for a crop.
    return Draft(sentence.id, [FileImage((sentence.image,))], turns, stated=sentence.size)


def place_regions(text: str, spans: Iterable[tuple[int, PixelBox]]) -> tuple[str, tuple[PixelBox, ...]]:
    """Put `<region>` behind positions of a text; return it with the boxes in its order."""
    # Stable: several boxes of a phrase stay in the order of the file.
    ordered = sorted(spans, key=lambda span: span[0])
    pieces, start = [], 0
    for end, _ in ordered:
        pieces.append(f"{text[start:end]} {REGION}")
        start = end
    return "".join([*pieces, text[start:]]), tuple(box for _, box in ordered)


def _recognize_flickr(source: str) -> str | None:
    path = Path(source)
    is_folder = (path / "Sentences").is_dir() and (path / "Annotations").is_dir()
    return "folders 'Sentences' and 'Annotations'" if is_folder else None


def parse_grit(entry: Mapping[str, Any], *, extract: bool) -> Draft:
    """Make a draft of one entry; raise MalformedEntryError if it is none.

    Args:
        extract: whether the boxes become regions.
    """
    caption = entry.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise MalformedEntryError("field 'caption' must be text")
    chunks = entry.get("noun_chunks") or entry.get("ref_exps") or []
    if not isinstance(chunks, list):
        raise MalformedEntryError(f"field 'noun_chunks' must be a list (got {type(chunks).__name__})")
    spans = [_read_chunk(chunk, len(caption)) for chunk in chunks] if extract else []
    text, boxes = place_regions(caption, spans)
    names = read_image_list(entry.get("image") or entry.get("file_name"))
    key = entry.get("key")
    if not names and isinstance(key, str | int):
        # GRIT states no file: img2dataset names a download by its key, in the format that it was asked for.
        names = [FileImage((f"{key}.jpg", f"{key}.png", f"{key}.webp"))]
    # The caption seeds the draw of the prompt, so that a repeated import asks the same question.
    prompt = PROMPTS[int(seeds.uniform("grit", caption) * len(PROMPTS))]
    turns = [Turn("user", f"{IMAGE}\n{prompt}"), Turn("assistant", text, boxes)]
    return Draft("", names, turns, stated=get_size(entry, "width", "height"))


def _read_chunk(chunk: object, length: int) -> tuple[int, PixelBox]:
    values = chunk if isinstance(chunk, list) and len(chunk) in (6, 7) else []
    # The bound keeps out NaN, on which int() raises, and integers that are too long for float().
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**53 for v in values):
        raise MalformedEntryError(f"field 'noun_chunks': {str(chunk)[:60]} is not [start, end, x1, y1, x2, y2, score]")
    start, end = int(values[0]), int(values[1])
    if not 0 <= start < end <= length:
        raise MalformedEntryError(f"field 'noun_chunks': characters {start} to {end} of a caption of {length}")
    return end, PixelBox(*map(float, values[2:6]))


_PICKLES = frozenset((".p", ".pkl", ".pickle"))
_COCO_FOLDERS = ("train2014", "COCO_train2014", "images/train2014", "coco/train2014")
_WHERE = ("Where is {x}?", "Find {x}.", "{x}: where is it?", "In the image, where is {x}?", "Show {x} in the image.")


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
    return _make_expression(
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
                _make_expression(
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


def _make_expression(
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


def import_refcoco(source: str | Path, target: str | Path, **options: Any) -> ImportSummary:
    """Import expressions and images into the collection `target`: a question and a box for each expression.

    Args:
        source: the file; see the module.
        options: see `import_conversations`.

    Raises:
        UserError: see `read_expressions`; or no image is found.
    """
    path = check_source(Path(source))
    entries = ((str(number), {"id": e.id, "expression": e}) for number, e in enumerate(read_expressions(path)))
    drafts = make_drafts(entries, lambda entry: _draft_expression(entry["expression"]))
    return import_conversations(path, target, drafts, folders=_COCO_FOLDERS, coordinates="pixels", **options)


def _draft_expression(expression: Expression) -> Draft:
    if expression.problem or expression.box is None:
        raise MalformedEntryError(expression.problem)
    # Drawn by expression, not by position, so that a repeated import asks the same.
    prompt = _WHERE[int(seeds.uniform("refcoco", expression.id, expression.phrase) * len(_WHERE))]
    question = Turn("user", f"{IMAGE}\n{prompt.format(x=expression.phrase.strip())}")
    answer = Turn("assistant", REGION, (expression.box,))
    return Draft("", [FileImage(expression.names)], [question, answer], stated=expression.size)


def _recognize_refcoco(source: str) -> str | None:
    path = Path(source)
    if path.is_file() and path.suffix.lower() in _PICKLES and path.name.startswith("refs("):
        # Recognized only to be refused with the command that converts it.
        return "a pickle of references"
    head = read_head(source, ".json")
    if b'"dataset_name"' in head and b'"caption"' in head:
        return "captions with 'dataset_name'"
    return "references with 'sentences'" if b'"ref_id"' in head and b'"sentences"' in head else None


FORMATS = (
    Format(
        name="flickr-entities",
        run=import_flickr_entities,
        recognize=_recognize_flickr,
        options=("images", "part", "data_group", "reference"),
    ),
    make_format(
        "grit",
        parse_grit,
        "captions with 'noun_chunks'",
        suffixes=(".json", ".jsonl", ".ndjson"),
        marks=((b'"caption"',), (b'"noun_chunks"',)),
        unit="0-1",
    ),
    Format(
        name="refcoco",
        run=import_refcoco,
        recognize=_recognize_refcoco,
        options=("images", "data_group", "reference"),
    ),
)
