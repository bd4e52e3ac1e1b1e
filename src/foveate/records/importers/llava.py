"""Import LLaVA's JSON: a list of `{"id", "image", "conversations": [{"from": "human", "value": "<image>\\n..."}]}`.

`image` is a name, a list of names, or missing. Boxes are lists of four numbers in the texts of conversations with an
image. Those of LLaVA's own data are fractions of the image padded to a square (`--coordinates 0-1-padded`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.records.conversations import Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    OPTIONS,
    Draft,
    get_size,
    get_text,
    read_head,
    read_image_list,
    read_turns,
    run_importer,
)
from foveate.records.importers.coordinates import BOX_LIST, extract_regions
from foveate.records.importers.formats import Format


def import_llava(source: str | Path, target: str | Path, **options: Any) -> ImportSummary:
    """Import a file of LLaVA's conversations into the collection `target`; see `import_conversations`."""
    return run_importer(source, target, parse_llava, **options)


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


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json", ".jsonl")
    marks = (b"box_x1y1x2y2", b"<img>", b"<|vision_start|>", b"<|box_start|>", b"<box>", b"bbox_2d", b"point_2d")
    if b'"conversations"' in head and b'"from"' in head and not any(mark in head for mark in marks):
        return "conversations with 'from' and 'value'"
    return None


FORMAT = Format(name="llava", run=import_llava, recognize=_recognize, options=OPTIONS)
