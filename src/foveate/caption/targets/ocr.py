"""Text recognition in images by RapidOCR (PP-OCRv4 on onnxruntime), an extra for Pythons below 3.13.

Results are cached in the collection, one JSON line per image, so that a stopped run does not repeat them.
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
from foveate.core.files import name_in_errors
from foveate.core.progress import say, track
from foveate.core.text_tables import iterate_json_lines
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode

PACKAGE = "rapidocr_onnxruntime"
_INSTALL = "pip install 'foveate[ocr]' (Python below 3.13)"
_FILE = "ocr-rapidocr-1.jsonl"
_MAX_SIDE_PX = 1280  # bounds the time per image; small print is still legible
_MIN_SCORE = 0.5


def recognize_text(collection: Collection, rows: Sequence[int], which: str) -> dict[int, tuple[str, ...]]:
    """Recognize text in images; return row -> lines from top to bottom, without rows that have none.

    Args:
        which: "none", "rapidocr", or "auto": "rapidocr" if it is installed, else "none" with a message.

    Raises:
        UserError: `which` is "rapidocr", and it is not installed.
    """
    if which == "none" or not rows:
        return {}
    if importlib.util.find_spec(PACKAGE) is None:
        if which == "rapidocr":
            raise UserError(f"field ocr: 'rapidocr' is not installed; {_INSTALL}, or set ocr=none")
        say(f"no OCR is installed: text in {len(rows)} images is not used for targets; {_INSTALL}")
        return {}
    known = _read_cache(collection)
    sha256 = collection.index["sha256"]
    missing = [row for row in rows if sha256[row] not in known]
    if missing:
        known |= _recognize(collection, missing)
    return {row: tuple(known[sha256[row]]) for row in rows if known.get(sha256[row])}


def _cache_path(collection: Collection) -> Path | None:
    return collection.path / "cache" / _FILE if os.access(collection.path, os.W_OK) else None


def _read_cache(collection: Collection) -> dict[str, list[str]]:
    path, lines_of = _cache_path(collection), dict[str, list[str]]()
    if path is None or not path.is_file():
        return lines_of
    for _, row in iterate_json_lines(path):
        # The last line of a run that was killed may be cut off.
        if isinstance(row, dict):
            lines_of[row["sha256"]] = row["lines"]
    return lines_of


def _recognize(collection: Collection, rows: Sequence[int]) -> dict[str, list[str]]:
    RapidOCR: Any = importlib.import_module(PACKAGE).RapidOCR

    engine, lines_of = RapidOCR(), dict[str, list[str]]()
    path = _cache_path(collection)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
    for row in track(rows, description="text in images"):
        sha256 = str(collection.index["sha256"][row])
        try:
            lines = read_lines(engine, collection.image_bytes(row))
        except BadImage:
            continue
        lines_of[sha256] = lines
        if path is not None:
            with name_in_errors(path), path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"sha256": sha256, "lines": lines}) + "\n")
    return lines_of


def read_lines(engine: Any, data: bytes) -> list[str]:
    """Return lines with a score of at least 0.5, in the engine's reading order."""
    image = decode(data, longest_side=_MAX_SIDE_PX)
    pixels_HW3 = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # the engine expects BGR
    lines, _ = engine(pixels_HW3)
    return [str(text) for _, text, score in lines or [] if float(score) >= _MIN_SCORE and str(text).strip()]
