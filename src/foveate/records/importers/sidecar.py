"""Read sidecar files: the texts and JSON objects next to an image.

Text (`.txt`): the whole file is one caption, or boxes where it has the lines of a YOLO text file. JSON (`.json`): a
list of captions and regions, or an object with, all optional,

- `caption`, `captions` or `alt`: a text, or a list of texts or of objects `{"text", "kind", "source"}`;
- `regions`: a list, see `read_region`;
- `labels`: an object of field to value; `group`, `split`, `url`: texts;
- of Google Takeout `description`, `photoTakenTime`, `geoData`.

Other fields, of which img2dataset writes many, are ignored.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np

from foveate.core.encodings import decode_text
from foveate.core.errors import UserError, choose, nearest
from foveate.records.boxes import EDGE_ROUNDING, Box
from foveate.records.importers.sample import Problem, Sidecar
from foveate.records.record import Caption, Context, Region
from foveate.records.rows import clean_text, has_control_characters

Reader = Callable[[], bytes]
# Require the semicolon: browsers also undo "&copy" without one, but "black&not white" is no entity.
_ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")


def read_sidecars(
    texts: Sequence[Reader],
    objects: Sequence[Reader],
    *,
    size: tuple[int, int] | None,
    fields: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    label_texts: bool = False,
) -> Sidecar:
    """Read the sidecars of an image; unusable parts become problems, the rest is used.

    Args:
        texts, objects: read the text files and the JSON files.
        size: (width, height) for boxes in pixels; None leaves regions out.
        fields: content of the JSON sidecar, which is then not read.
        labels: known without a sidecar; those of the JSON take precedence.
        class_names: of the classes of YOLO text files.
        label_texts: the text files lie in a folder `labels`, so numbers in them are no caption.
    """
    sidecar = Sidecar()
    contents = [_decode(read, "text", sidecar) for read in texts]
    parsed = [fields] if fields else [_read_object(read, sidecar) for read in objects]
    captions: list[Caption] = []
    for content in parsed:
        for name in ("caption", "captions", "alt"):
            captions.extend(_parse_captions(content.get(name), name, sidecar))
        if "photoTakenTime" in content:
            _add_takeout(content, captions, sidecar)
        for name in ("group", "split", "url", "status", "key"):
            value = content.get(name)
            # Strings as in img2dataset; numbers, which some writers use for `key`, would not name the image elsewhere.
            if isinstance(value, str) and _is_storable(value):
                setattr(sidecar, name, clean_text(value))
    boxes: list[object] = []
    written: list[Caption] = []
    for content in contents:
        if content is None:
            continue
        labeled = parse_yolo(content, class_names)
        if labeled is not None:
            boxes.extend(labeled)
            sidecar.further["text files of YOLO, whose lines are boxes and no captions"] += 1
            if labeled and not class_names:
                sidecar.further["text files of YOLO without class names (no readable classes.txt or data.yaml)"] += 1
        elif label_texts and has_only_numbers(content):
            detail = "the text file in the folder 'labels' has numbers that are no boxes of YOLO"
            sidecar.problems.append(Problem("sidecar", "malformed boxes", detail))
        # img2dataset writes the caption into both files.
        elif content.strip() not in {caption.text.strip() for caption in captions}:
            written.append(Caption(content))
    _add_captions([*written, *captions], sidecar)
    # Add these before the labels of the JSON, which override equal names.
    _add_labels(labels, sidecar)
    for content in parsed:
        _add_labels(content.get("labels"), sidecar)
        if size is not None:
            _add_regions(content.get("regions"), size, sidecar)
    if size is not None and boxes:
        _add_regions(boxes, size, sidecar)
    return sidecar


def _decode(read: Reader, what: str, sidecar: Sidecar) -> str | None:
    try:
        text, encoding = decode_text(read())
    except UnicodeDecodeError as error:
        detail = f"the {what} sidecar is in no encoding that can be recognized ({error.reason}); save it as UTF-8"
        sidecar.problems.append(Problem("sidecar", "unknown encoding", detail))
    except OSError as error:
        detail = f"the {what} sidecar cannot be read: {error.strerror or error}"
        sidecar.problems.append(Problem("sidecar", "unreadable", detail))
    else:
        if encoding != "utf-8":
            sidecar.further[f"sidecars read as {encoding}"] += 1
        return text
    return None


def _read_object(read: Reader, sidecar: Sidecar) -> Mapping[str, object]:
    content = _decode(read, "JSON", sidecar)
    if content is None:
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        detail = f"the JSON sidecar cannot be read: {str(error)[:120]}"
        sidecar.problems.append(Problem("sidecar", "malformed JSON", detail))
        return {}
    if isinstance(value, list) and all(isinstance(entry, str | dict) for entry in value):
        captions: list[object] = []
        regions: list[object] = []
        for entry in value:
            (regions if isinstance(entry, dict) and "box" in entry else captions).append(entry)
        return {"captions": captions, "regions": regions}
    if not isinstance(value, dict):
        detail = f"the JSON sidecar must be an object, or a list of texts and regions (got {type(value).__name__})"
        sidecar.problems.append(Problem("sidecar", "malformed JSON", detail))
        return {}
    return value


def _add_takeout(content: Mapping[str, object], captions: list[Caption], sidecar: Sidecar) -> None:
    """Take the description, time and place of a file of Google Takeout."""
    description = content.get("description")
    if isinstance(description, str) and description.strip():
        captions.append(Caption(description, "description"))
    locations = (_read_degrees(content.get(name)) for name in ("geoData", "geoDataExif"))
    latitude, longitude = next(filter(None, locations), (None, None))
    photo_time = content.get("photoTakenTime")
    seconds = photo_time.get("timestamp") if isinstance(photo_time, Mapping) else None
    try:
        # Takeout writes the seconds as text; str() allows for a number as well.
        time = datetime.fromtimestamp(int(str(seconds)), UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        time = ""
    if latitude is not None or time:
        sidecar.context = Context(latitude, longitude, time)


def _read_degrees(location: object) -> tuple[float, float] | None:
    """Return (latitude, longitude) of a location of Takeout; None if they are no degrees."""
    if not isinstance(location, Mapping):
        return None
    degrees: list[float] = []
    for name, limit in (("latitude", 90), ("longitude", 180)):
        value = location.get(name)
        # A JSON integer can be too large for a float, so compare first; NaN is in no interval.
        if not isinstance(value, int | float) or isinstance(value, bool) or not -limit <= value <= limit:
            return None
        degrees.append(float(value))
    # Takeout writes 0, 0 where it knows no location.
    return (degrees[0], degrees[1]) if any(degrees) else None


def _parse_captions(value: object, name: str, sidecar: Sidecar) -> list[Caption]:
    captions = []
    for position, entry in enumerate(value if isinstance(value, list) else [value]):
        if entry is None:
            continue
        fields = entry if isinstance(entry, dict) else {"text": entry}
        parts = [fields.get("text"), fields.get("kind", "alt"), fields.get("source", "")]
        if all(isinstance(part, str) for part in parts):
            captions.append(Caption(*map(str, parts)))
        else:
            detail = f"field {name!r} must hold text, or objects with the texts 'text', 'kind' and 'source'"
            sidecar.problems.append(Problem("caption", "not text", detail, position))
    return captions


def _add_captions(captions: list[Caption], sidecar: Sidecar) -> None:
    seen = set()
    for position, caption in enumerate(captions):
        # JSON can escape half a surrogate pair (\ud83d): Python reads it, but UTF-8 cannot hold it.
        if not all(map(_is_storable, (caption.text, caption.kind, caption.source))):
            detail = "the caption has half a surrogate pair, which is not valid Unicode"
            sidecar.problems.append(Problem("caption", "not Unicode", detail, position))
            continue
        cleaned = _undo_entities(clean_text(caption.text), sidecar)
        if not cleaned or (cleaned, caption.kind) in seen:
            continue
        seen.add((cleaned, caption.kind))
        sidecar.cleaned += has_control_characters(caption.text)
        sidecar.captions.append(Caption(cleaned, caption.kind, caption.source))
        sidecar.caption_indices.append(position)


def _add_labels(value: object, sidecar: Sidecar) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        problem = Problem("labels", "malformed labels", "field 'labels' must be an object of field to value")
        sidecar.problems.append(problem)
        return
    for position, (name, label) in enumerate(value.items()):
        usable = isinstance(label, str | int | float) and _is_storable(f"{name}{label}")
        if usable and clean_text(name):
            sidecar.labels[clean_text(name)] = clean_text(str(label))
        else:
            detail = f"the label {name!r} must have a name and be text or a number"
            sidecar.problems.append(Problem("labels", "malformed labels", detail, position))


def _add_regions(value: object, size: tuple[int, int], sidecar: Sidecar) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        detail = "field 'regions' must be a list of objects"
        sidecar.problems.append(Problem("region", "malformed region", detail))
        return
    # All boxes of the image decide together: a tiny one in pixels could look like a fraction.
    unit = "normalized" if are_fractions(value) else "pixel"
    if unit == "normalized":
        sidecar.further["images whose boxes were taken as fractions: no unit, and no corner above 1"] += 1
    for position, raw in enumerate(value):
        outcome = read_region(raw, position=position, width=size[0], height=size[1], unit=unit)
        if isinstance(outcome, Problem):
            sidecar.problems.append(outcome)
            continue
        region, clipped = outcome
        texts = (region.phrase, region.label, region.slice, region.source)
        if not all(map(_is_storable, texts)):
            detail = "the text of the region has half a surrogate pair, which is not valid Unicode"
            sidecar.problems.append(Problem("region", "not Unicode", detail, position))
            continue
        sidecar.cleaned += any(map(has_control_characters, texts))
        sidecar.clipped += clipped
        phrase = _undo_entities(clean_text(region.phrase), sidecar)
        sidecar.regions.append(Region(region.box, phrase, region.score, *map(clean_text, texts[1:])))
        sidecar.region_indices.append(position)


def _undo_entities(text: str, sidecar: Sidecar) -> str:
    """Undo HTML entities, also those that were escaped twice ("&amp;quot;")."""
    plain = text
    for _ in range(2):
        plain = _ENTITY.sub(lambda entity: html.unescape(entity[0]), plain)
    # An entity may encode a control character.
    plain = plain if plain == text or not _is_storable(plain) else clean_text(plain)
    sidecar.further["texts with HTML entities, which were undone"] += plain != text
    return plain


def _is_storable(text: str) -> bool:
    try:
        clean_text(text)
    except UserError:
        return False
    return True


BOX_FORMATS = ("xyxy", "xywh")
BOX_UNITS = ("pixel", "normalized")
REGION_FIELDS = ("box", "phrase", "format", "unit", "score", "label", "slice", "source")
# A box may reach out of the image by this fraction of the side and is then clipped. One that reaches further was most
# likely written in another unit or format, and clipping would hide that.
CLIP_TOLERANCE = 0.05


def are_fractions(regions: Sequence[object]) -> bool:
    """Whether boxes without a unit must be fractions of the image: none of their numbers is above 1.

    In pixels no such box would have more than one pixel. 1.05 is allowed, as boxes may reach out of the image.
    """
    boxes = [raw["box"] for raw in regions if isinstance(raw, Mapping) and "box" in raw and raw.get("unit") is None]
    entries = [value for box in boxes if isinstance(box, list) for value in box]
    values = [value for value in entries if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(values) == len(entries) > 0 and all(-CLIP_TOLERANCE <= value <= 1 + CLIP_TOLERANCE for value in values)


def read_region(
    raw: object, *, position: int, width: int, height: int, unit: str = "pixel"
) -> tuple[Region, bool] | Problem:
    """Parse one entry of "regions"; return the region and whether its box was clipped, or the problem.

    Args:
        raw: an object with `box` (four numbers), `phrase` and/or `label`, `format` ("xyxy", the default, or "xywh"),
            `unit` ("pixel" or "normalized"), `score` in [0, 1], `slice`, `source`.
        position: number of the entry, for the problem.
        width, height: of the image after EXIF rotation, in pixels.
        unit: of a box that states none.
    """
    try:
        if not isinstance(raw, Mapping):
            raise UserError("a region must be an object with the field 'box'")
        texts = {name: _get_text(raw, name) for name in ("phrase", "label", "slice", "source")}
        score = _get_number(raw.get("score", 1.0), "score")
        if not 0 <= score <= 1:
            raise UserError(f"field 'score': {score:g} is not in [0, 1]")
        if not texts["phrase"].strip() and not texts["label"].strip():
            raise UserError(f"neither field 'phrase' nor 'label' has text{_hint(raw, 'phrase')}")
        corners = _corners(raw, width=width, height=height, unit=unit)
    except UserError as error:
        # Whatever is wrong with the entry: one bad region becomes a finding and never ends the import.
        return Problem("region", "malformed region", str(error), position)
    texts["phrase"] = texts["phrase"] if texts["phrase"].strip() else texts["label"]
    outcome = _fit(corners)
    if isinstance(outcome, str):
        listed = ", ".join(f"{corner:.4g}" for corner in corners)
        detail = f"box ({listed}) in parts of the image's width and height"
        return Problem("region", outcome, detail, position)
    box, clipped = outcome
    return Region(box, texts["phrase"], score, texts["label"], texts["slice"], texts["source"]), clipped


def _corners(raw: Mapping[str, object], *, width: int, height: int, unit: str) -> tuple[float, float, float, float]:
    if "box" not in raw:
        raise UserError(f"field 'box' is missing{_hint(raw, 'box')}")
    box = raw["box"]
    if not isinstance(box, list) or len(box) != 4:
        raise UserError("field 'box' must be a list of four numbers")
    x1, y1, x2, y2 = (_get_number(value, "box") for value in box)
    if choose(_get_text(raw, "format") or "xyxy", BOX_FORMATS, "box format") == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if choose(_get_text(raw, "unit") or unit, BOX_UNITS, "box unit") == "pixel":
        x1, y1, x2, y2 = x1 / width, y1 / height, x2 / width, y2 / height
    return x1, y1, x2, y2


def _fit(corners: tuple[float, float, float, float]) -> tuple[Box, bool] | str:
    """Return the box and whether it was clipped, or the reason code why it is refused."""
    if not all(math.isfinite(corner) for corner in corners):
        return "box not finite"
    x1, y1, x2, y2 = corners
    if x2 < x1 or y2 < y1:
        return "box inverted"
    if x2 == x1 or y2 == y1:
        return "box empty"
    sticks_out = max(-x1, -y1, x2 - 1, y2 - 1)
    if sticks_out > CLIP_TOLERANCE or min(x2, y2) <= 0 or max(x1, y1) >= 1:
        return "box outside the image"
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2)
    # Corners are stored as float32, in which a very thin box would be empty.
    if np.float32(x1) >= np.float32(x2) or np.float32(y1) >= np.float32(y2):
        return "box empty"
    return Box(x1, y1, x2, y2), sticks_out > EDGE_ROUNDING


def _get_text(raw: Mapping[str, object], name: str) -> str:
    value = raw.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"field {name!r} must be text")
    return value


def _get_number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"field {name!r} must hold numbers")
    try:
        return float(value)
    # JSON integers have any length; one too large for a float lies outside of every image.
    except OverflowError:
        return math.inf


def _hint(raw: Mapping[str, object], field: str) -> str:
    """Return the nearest of the unknown fields of an entry, for a misspelled name."""
    return nearest(field, [str(name) for name in raw if name not in REGION_FIELDS])


# "0.0" is what tables of numbers write for a class.
_CLASS = re.compile(r"([0-9]{1,6})(?:\.0+)?")
_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")


def parse_yolo(text: str, class_names: Sequence[str]) -> list[dict[str, object]] | None:
    """Return the boxes of a YOLO text file as entries of "regions"; None if the text is something else.

    Lines are `class x y width height`, with a score behind it in a detector's output, or `class x1 y1 x2 y2 x3 y3 ...`,
    the outline of a segment, whose box is returned.

    Args:
        class_names: name by number of the class; without them phrases are "class 7".
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    boxes: list[dict[str, object]] = []
    for fields in lines:
        values = _parse_numbers(fields)
        if values is None:
            return None
        # An outline has at least three corners: five numbers are a box with its score.
        if len(values) >= 6 and len(values) % 2 == 0:
            across, down = values[::2], values[1::2]
            box = [min(across), min(down), max(across), max(down)]
        elif len(values) in (4, 5):
            x, y, width, height = values[:4]
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        else:
            return None
        score = values[4] if len(values) == 5 else 1.0
        number = int(fields[0].partition(".")[0])
        name = class_names[number] if number < len(class_names) and class_names[number].strip() else f"class {number}"
        boxes.append({"box": box, "unit": "normalized", "phrase": name, "label": name, "score": score})
    return boxes


def has_only_numbers(text: str) -> bool:
    """Whether a text has numbers in each line and nothing else, as a damaged file of YOLO has."""
    words = text.split()
    return bool(words) and all(map(_NUMBER.fullmatch, words))


def _parse_numbers(fields: Sequence[str]) -> list[float] | None:
    """Return the numbers of a line behind its class; None if they cannot be those of a box."""
    if not _CLASS.fullmatch(fields[0]):
        return None
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        return None
    # A caption of numbers, such as "1984 2 4 6 8", is none; what sticks out a little is clipped later.
    fits = all(-CLIP_TOLERANCE <= value <= 1 + CLIP_TOLERANCE for value in values)
    return values if fits else None
