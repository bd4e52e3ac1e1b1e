"""Import conversations as Qwen-VL's fine-tuning reads them.

Qwen-VL writes `<img>name</img>`, `<ref>phrase</ref>` and `<box>(x1,y1),(x2,y2)</box>` with 0..1000; Qwen2-VL
`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`; Qwen2.5-VL `"bbox_2d": [x1, y1, x2, y2]` and `"point_2d": [x, y]` in pixels
of the resized image; Qwen3-VL the same with 0..1000. The unit is never taken from this list: see `--coordinates`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.records.conversations import IMAGE
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.chat import parse_chat
from foveate.records.importers.conversation_file import OPTIONS, Draft, read_head, read_turns, run_importer
from foveate.records.importers.coordinates import BOX_LIST
from foveate.records.importers.formats import Format

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


def import_qwen_vl(source: str | Path, target: str | Path, **options: Any) -> ImportSummary:
    """Import a file of Qwen-VL's conversations into the collection `target`; see `import_conversations`."""
    return run_importer(source, target, parse_qwen_vl, **options)


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
    cleaned = {name: value for name, value in entry.items() if name != "conversations"} | {"messages": messages}
    if images:
        cleaned["images"] = images
    return parse_chat(cleaned, extract=extract, patterns=_PATTERNS)


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json", ".jsonl")
    marks = (b"<img>", b"<|vision_start|>", b"<|box_start|>", b"<box>", b"bbox_2d", b"point_2d")
    mark = next((mark for mark in marks if mark in head), None)
    talks = b'"conversations"' in head or b'"messages"' in head
    return f"conversations with {mark.decode()}" if mark and talks and b"box_x1y1x2y2" not in head else None


FORMAT = Format(name="qwen-vl", run=import_qwen_vl, recognize=_recognize, options=OPTIONS)
