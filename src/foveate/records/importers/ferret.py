"""Import Ferret's JSON: LLaVA's with `<bbox_location0>` in the texts, and boxes and masks beside them.

`box_x1y1x2y2` has one list of boxes per turn, `masks` (optional) COCO run lengths with the same nesting, `image_w` and
`image_h` the size that boxes refer to. A question points with the mask where there is one, an answer always with a box.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import REGION, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    OPTIONS,
    Draft,
    MalformedEntryError,
    get_size,
    get_text,
    read_head,
    read_image_list,
    read_turns,
    run_importer,
)
from foveate.records.importers.formats import Format
from foveate.records.importers.json_files import is_number
from foveate.records.masks import decode_counts
from foveate.records.shapes import Mask, Shape

# Texts that went through Ferret's own code have the token of the region's vector behind its place.
_LOCATION = re.compile(r"<bbox_location(\d{1,6})>(?: ?<region_fea>)?")


def import_ferret(source: str | Path, target: str | Path, **options: Any) -> ImportSummary:
    """Import a file of Ferret's conversations into the collection `target`; see `import_conversations`."""
    if options.get("coordinates") == "none":
        raise UserError("--coordinates none has no effect on the format 'ferret': its boxes stand beside the texts")
    return run_importer(source, target, parse_ferret, **options)


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


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json", ".jsonl")
    return "conversations with 'box_x1y1x2y2'" if b'"conversations"' in head and b"box_x1y1x2y2" in head else None


FORMAT = Format(name="ferret", run=import_ferret, recognize=_recognize, options=OPTIONS)
