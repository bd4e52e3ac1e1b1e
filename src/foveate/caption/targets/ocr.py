"""Text in images, by RapidOCR (PP-OCRv4 on onnxruntime), an extra for Pythons below 3.13.

What was recognized is kept beside the collection's other caches, one JSON line an image, so that a stopped run does
not begin again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.core.progress import say, track
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode

PACKAGE = "rapidocr_onnxruntime"
HOW = "pip install 'foveate[ocr]' (Python below 3.13)"
_FILE = "ocr-rapidocr-1.jsonl"
_LONGEST_SIDE = 1280
_SURE = 0.5


def recognized(collection: Collection, rows: Sequence[int], which: str) -> dict[int, tuple[str, ...]]:
    """Row -> lines of text in its image, top to bottom; rows without any are left out.

    Args:
        which: "none", "rapidocr", or "auto": as "rapidocr" where it is installed, else told and left out.

    Raises:
        UserError: with "rapidocr", when it is not installed.
    """
    if which == "none" or not rows:
        return {}
    if importlib.util.find_spec(PACKAGE) is None:
        if which == "rapidocr":
            raise UserError(f"data.ocr 'rapidocr': it is not installed; {HOW}, or set data.ocr=none")
        say(f"no OCR is installed: text in {len(rows)} images is not used for targets; {HOW}")
        return {}
    known = _known(collection)
    sha256 = collection.index["sha256"]
    missing = [row for row in rows if sha256[row] not in known]
    if missing:
        known |= _recognize(collection, missing)
    return {row: tuple(known[sha256[row]]) for row in rows if known.get(sha256[row])}


def _path(collection: Collection) -> Path | None:
    return collection.path / "cache" / _FILE if os.access(collection.path, os.W_OK) else None


def _known(collection: Collection) -> dict[str, list[str]]:
    path, found = _path(collection), dict[str, list[str]]()
    if path is None or not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        found[row["sha256"]] = row["lines"]
    return found


def _recognize(collection: Collection, rows: Sequence[int]) -> dict[str, list[str]]:
    RapidOCR: Any = importlib.import_module(PACKAGE).RapidOCR

    engine, found = RapidOCR(), dict[str, list[str]]()
    path = _path(collection)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
    for row in track(rows, description="text in images"):
        sha256 = str(collection.index["sha256"][row])
        try:
            lines = read_lines(engine, collection.image_bytes(row))
        except BadImage:
            continue
        found[sha256] = lines
        if path is not None:
            with path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"sha256": sha256, "lines": lines}) + "\n")
    return found


def read_lines(engine: Any, data: bytes) -> list[str]:
    """The lines that an engine is at least half sure of, in its reading order."""
    image = decode(data, longest_side=_LONGEST_SIDE)
    pixels_HW3 = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # the engine wants BGR
    lines, _ = engine(pixels_HW3)
    return [str(text) for _, text, score in lines or [] if float(score) >= _SURE and str(text).strip()]
