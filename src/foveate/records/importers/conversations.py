"""Import files of conversations: one row per format, LLaVA's JSON, chat messages, Qwen-VL's and Ferret's.

- LLaVA: a list of `{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}]}`. `image` is a name,
  a list of names, or missing. Boxes are lists of four numbers in the texts of conversations with an image. Those of
  LLaVA's own data are fractions of the image padded to a square (`--coordinates 0-1-padded`).
- Chat messages as OpenAI and transformers write them: JSON Lines of `{"messages": [{"role", "content"}]}`. A content is
  a text or a list of parts: `text`, `image_url` (a data URL or a file) and `image` (a file, or the next of the entry's
  list `images`). A text may hold `<image>` itself. Messages of one role in a row are joined.
- Qwen-VL writes `<img>name</img>`, `<ref>phrase</ref>` and `<box>(x1,y1),(x2,y2)</box>` with 0..1000; Qwen2-VL
  `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`; Qwen2.5-VL `"bbox_2d": [x1, y1, x2, y2]` and `"point_2d": [x, y]` in pixels
  of the resized image; Qwen3-VL the same with 0..1000. The unit is never taken from this list: see `--coordinates`.
- Ferret: LLaVA's with `<bbox_location0>` in the texts, and boxes and masks beside them. `box_x1y1x2y2` has one list of
  boxes per turn, `masks` (optional) COCO run lengths with the same nesting, `image_w` and `image_h` the size that boxes
  refer to. A question points with the mask where there is one, an answer always with a box.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, Turn
from foveate.records.importers.conversation_file import (
    Draft,
    FileImage,
    MalformedEntryError,
    get_size,
    get_text,
    make_format,
    read_image,
    read_image_list,
    read_turns,
)
from foveate.records.importers.coordinates import BOX_LIST, extract_regions
from foveate.records.importers.files import is_number
from foveate.records.shapes import Mask, Shape, decode_counts


def parse_llava(entry: Mapping[str, Any], *, extract: bool) -> Draft:
    """Make a draft of one entry; raise MalformedEntryError if it is none."""
    images = read_image_list(entry.get("image", entry.get("images")))
    turns = []
    for role, content in read_turns(entry):
        # Without an image, four numbers in brackets are no box.
        text, shapes = extract_regions(get_text(content), BOX_LIST) if extract and images else (get_text(content), ())
        turns.append(Turn(role, text, shapes))
    resized = get_size(entry, "resized_width", "resized_height")
    return Draft("", images, turns, stated=get_size(entry, "width", "height"), resized=resized)


def parse_chat(entry: Mapping[str, Any], *, extract: bool, patterns: tuple[str, ...] = (BOX_LIST,)) -> Draft:
    """Make a draft of one entry; raise MalformedEntryError if it is none.

    Args:
        extract: whether texts hold regions.
        patterns: how they are written; see `extract_regions`.
    """
    listed = read_image_list(entry.get("images", entry.get("image")))
    waiting = list(listed)
    images: list[FileImage] = []
    joined: list[tuple[str, str]] = []
    for role, content in read_turns(entry):
        text = _read_content(content, waiting, images)
        # Roles of a conversation must alternate, so consecutive messages of one role are joined into one turn.
        if joined and joined[-1][0] == role:
            joined[-1] = (role, f"{joined[-1][1]}\n{text}")
        else:
            joined.append((role, text))
    # Placeholders that stand in the texts already belong to the listed images.
    images = images if len(waiting) < len(listed) or images else listed
    turns = []
    for role, text in joined:
        replaced, shapes = extract_regions(text, *patterns) if extract and images else (text, ())
        turns.append(Turn(role, replaced, shapes))
    resized = get_size(entry, "resized_width", "resized_height")
    return Draft("", images, turns, stated=get_size(entry, "width", "height"), resized=resized)


def _read_content(content: object, waiting: list[FileImage], images: list[FileImage]) -> str:
    """Return the text of a content; move its images from `waiting`, or its own, to `images`."""
    if not isinstance(content, list):
        return get_text(content)
    texts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise MalformedEntryError(f"a part of a message must be an object (got {str(part)[:40]})")
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            texts.append(get_text(part.get("text")))
        elif kind in ("image", "image_url", "input_image"):
            value = next(
                (part[name] for name in ("image_url", "image", "url", "path", "base64") if part.get(name)), None
            )
            if value is None and not waiting:
                raise MalformedEntryError(
                    "a part of the type 'image' names no image, and none of the list 'images' is left"
                )
            images.append(waiting.pop(0) if value is None else read_image(value))
            texts.append(IMAGE)
        else:
            raise MalformedEntryError(f"part type {str(kind)[:40]!r}; expected text, image or image_url")
    return "\n".join(texts)


_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_CORNERS = rf"\({_N},{_N}\)\s*,\s*\({_N},{_N}\)"
_PATTERNS = (
    rf"<box>{_CORNERS}</box>",
    rf"<\|box_start\|>{_CORNERS}<\|box_end\|>",
    BOX_LIST,
    # Twice, since Python's look-behind has a fixed width and the blank is optional.
    rf'(?<="point_2d": )\[{_N},{_N}\]',
    rf'(?<="point_2d":)\[{_N},{_N}\]',
)
_IMAGE_TAG = re.compile(r"(?:Picture \d+:\s*)?<img>([^<]*)</img>")
_PHRASE = re.compile(r"</?ref>|<\|object_ref_(?:start|end)\|>")
_VISION = re.compile(r"(?:Picture \d+:\s*)?<\|vision_start\|><\|image_pad\|><\|vision_end\|>")


def parse_qwen_vl(entry: Mapping[str, Any], *, extract: bool) -> Draft:
    """Make a draft of one entry; raise MalformedEntryError if it is none."""
    images: list[str] = []
    messages = []

    def note_image(match: re.Match[str]) -> str:
        images.append(match[1].strip())
        return IMAGE

    for role, content in read_turns(entry):
        if isinstance(content, str):
            content = _PHRASE.sub("", _VISION.sub(IMAGE, _IMAGE_TAG.sub(note_image, content)))
        messages.append({"role": role, "content": content})
    # `read_turns` looks for "conversations" first and would find the texts with their tags again.
    cleaned = {name: value for name, value in entry.items() if name != "conversations"} | {"messages": messages}
    if images:
        cleaned["images"] = images
    return parse_chat(cleaned, extract=extract, patterns=_PATTERNS)


# Texts that went through Ferret's own code have the token of the region's vector behind its place.
_LOCATION = re.compile(r"<bbox_location(\d{1,6})>(?: ?<region_fea>)?")


def parse_ferret(entry: Mapping[str, Any], *, extract: bool = True) -> Draft:
    """Make a draft of one entry; raise MalformedEntryError if it is none."""
    boxes, masks = entry.get("box_x1y1x2y2") or [], entry.get("masks") or []
    turns = []
    for number, (role, content) in enumerate(read_turns(entry)):
        text = get_text(content)
        positions = [int(match) for match in _LOCATION.findall(text)]
        shapes = tuple(_make_shape(boxes, masks, number, position, role) for position in positions)
        turns.append(Turn(role, _LOCATION.sub(REGION, text), shapes))
    return Draft("", read_image_list(entry.get("image")), turns, stated=get_size(entry, "image_w", "image_h"))


def _make_shape(boxes: object, masks: object, turn: int, position: int, role: str) -> Shape:
    mask = _get_nested(masks, turn, position)
    if mask is not None and role == "user":
        return _read_mask(mask)
    box = _get_nested(boxes, turn, position)
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        raise MalformedEntryError(
            f"field 'box_x1y1x2y2': no box of four numbers for <bbox_location{position}> of turn {turn}"
        )
    return PixelBox(*map(float, box))


def _get_nested(nested: object, turn: int, position: int) -> object:
    row = nested[turn] if isinstance(nested, list) and turn < len(nested) else None
    return row[position] if isinstance(row, list) and position < len(row) else None


def _read_mask(mask: object) -> Mask:
    try:
        height, width = mask["size"]  # type: ignore[index]
        counts = mask["counts"]  # type: ignore[index]
        counts = decode_counts(counts) if isinstance(counts, str) else [int(count) for count in counts]
        return Mask((int(height), int(width)), tuple(counts))
    # OverflowError: int() of a run that JSON gives as Infinity.
    except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        raise MalformedEntryError(f"field 'masks': {str(mask)[:60]} has no 'size' and 'counts' ({error})") from error


_QWEN_MARKS = (b"<img>", b"<|vision_start|>", b"<|box_start|>", b"<box>", b"bbox_2d", b"point_2d")
_FERRET_BOXES = b"box_x1y1x2y2"
FORMATS = (
    make_format(
        "llava",
        parse_llava,
        "conversations with 'from' and 'value'",
        marks=((b'"conversations"',), (b'"from"',)),
        foreign=(_FERRET_BOXES, *_QWEN_MARKS),
    ),
    make_format(
        "chat",
        parse_chat,
        "messages with 'role' and 'content'",
        suffixes=(".json", ".jsonl", ".ndjson"),
        marks=((b'"messages"',), (b'"role"',)),
        foreign=(b"<|box_start|>", b"bbox_2d"),
    ),
    make_format(
        "qwen-vl",
        parse_qwen_vl,
        "conversations with {mark}",
        marks=(_QWEN_MARKS, (b'"conversations"', b'"messages"')),
        foreign=(_FERRET_BOXES,),
    ),
    make_format(
        "ferret",
        parse_ferret,
        "conversations with 'box_x1y1x2y2'",
        marks=((b'"conversations"',), (_FERRET_BOXES,)),
        without_unit="--coordinates none has no effect on the format 'ferret': its boxes stand beside the texts",
    ),
)
