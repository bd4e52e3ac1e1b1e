"""Import grounded captions in the form of GRIT: `caption`, and `noun_chunks` of [start, end, x1, y1, x2, y2, score].

Start and end are characters of the caption; corners are fractions of the image unless --coordinates says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core import seeds
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    OPTIONS,
    Draft,
    FileImage,
    MalformedEntryError,
    get_size,
    read_head,
    read_image_list,
    run_importer,
)
from foveate.records.importers.flickr_entities import PROMPTS, place_regions
from foveate.records.importers.formats import Format


def import_grit(
    source: str | Path, target: str | Path, *, coordinates: str | None = None, **options: Any
) -> ImportSummary:
    """Import grounded captions into the collection `target`; see `import_conversations`."""
    return run_importer(source, target, parse_grit, coordinates=coordinates or "0-1", **options)


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


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json", ".jsonl", ".ndjson")
    return "captions with 'noun_chunks'" if b'"caption"' in head and b'"noun_chunks"' in head else None


FORMAT = Format(name="grit", run=import_grit, recognize=_recognize, options=OPTIONS)
