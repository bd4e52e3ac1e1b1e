"""Import Flickr30k Entities: captions whose phrases have boxes, from `Sentences`, `Annotations` and the images.

Each sentence becomes a conversation whose answer is the sentence with the boxes of each phrase behind it. Boxes are
pixels. `train.txt`, `val.txt` and `test.txt` list the images of a part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack
from xml.etree import ElementTree

from foveate.core import seeds
from foveate.core.errors import UserError, choose
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, Finding, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import Draft, FileImage, import_conversations
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source
from foveate.records.importers.sample import SharedOptions

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
    return [sentence for id in ids for sentence in _read_image(folder, id)]


def _read_image(folder: Path, id: str) -> Iterator[EntitySentence]:
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
    source: str | Path,
    target: str | Path,
    *,
    images: str | Path | None = None,
    part: str | None = None,
    data_group: str | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import sentences with boxes, and their images, into the collection `target`.

    Args:
        source: the folder with `Sentences` and `Annotations`.
        images: folder of the images; by default `flickr30k-images` in it.
        part: only the images of this list ("train", "val", "test").
        data_group, reference: see `foveate.records.importers.settings.FormatOptions`.
        shared: see `SharedOptions`.

    Raises:
        UserError: see `read_sentences`; or no image is found.
    """
    folder = check_source(Path(source))
    drafts = [_draft(sentence) for sentence in read_sentences(folder, part)]
    # The path passed below only locates the images; its name, "Sentences", would be a poor source name.
    shared["source_name"] = shared.get("source_name") or "flickr-entities"
    return import_conversations(
        folder / "Sentences",
        target,
        drafts,
        images=images,
        folders=IMAGE_FOLDERS,
        coordinates="pixels",
        data_group=data_group,
        reference=reference,
        **shared,
    )


def _draft(sentence: EntitySentence) -> Draft:
    problem = sentence.problem or ("" if any(p.boxes for p in sentence.phrases) else f"{sentence.id}: no boxes")
    if problem:
        return Draft(sentence.id, finding=Finding("malformed entry" if sentence.problem else "no boxes", problem))
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


def _recognize(source: str) -> str | None:
    path = Path(source)
    is_folder = (path / "Sentences").is_dir() and (path / "Annotations").is_dir()
    return "folders 'Sentences' and 'Annotations'" if is_folder else None


FORMAT = Format(
    name="flickr-entities",
    run=import_flickr_entities,
    recognize=_recognize,
    options=("images", "part", "data_group", "reference"),
)
