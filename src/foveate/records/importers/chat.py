"""Import chat messages as OpenAI and transformers write them: JSON Lines of `{"messages": [{"role", "content"}]}`.

A content is a text or a list of parts: `text`, `image_url` (a data URL or a file) and `image` (a file, or the next of
the entry's list `images`). A text may hold `<image>` itself. Messages of one role in a row are joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.records.conversations import IMAGE, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    OPTIONS,
    Draft,
    FileImage,
    MalformedEntryError,
    get_size,
    get_text,
    read_head,
    read_image,
    read_image_list,
    read_turns,
    run_importer,
)
from foveate.records.importers.coordinates import BOX_LIST, extract_regions
from foveate.records.importers.formats import Format


def import_chat(source: str | Path, target: str | Path, **options: Any) -> ImportSummary:
    """Import a file of chat messages into the collection `target`; see `import_conversations`."""
    return run_importer(source, target, parse_chat, **options)


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


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json", ".jsonl", ".ndjson")
    if b'"messages"' in head and b'"role"' in head and b"<|box_start|>" not in head and b"bbox_2d" not in head:
        return "messages with 'role' and 'content'"
    return None


FORMAT = Format(name="chat", run=import_chat, recognize=_recognize, options=OPTIONS)
