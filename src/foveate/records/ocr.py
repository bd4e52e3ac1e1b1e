"""Read the words in images, with RapidOCR (the extra `ocr`): once an image, kept in a file of JSON lines."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.core.files import name_in_errors
from foveate.core.progress import track
from foveate.core.text_tables import iterate_json_lines
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode

INSTALL = "pip install 'foveate[ocr]'"
# Its number changes with the network or its settings, so that no kept text is mistaken for that of another.
FILE = "ocr-rapidocr-3.jsonl"
_PACKAGE = "rapidocr"
_MAX_SIDE_PX = 1280  # bounds the time per image; small print is still legible
_MIN_SCORE = 0.5
# Images are not enlarged, which costs four times as much and reads no more. Lines are not turned: the network for
# that takes faint lines for upside-down ones, and then reads letters that are not there.
_SETTINGS = {
    "Global.log_level": "critical",
    "Global.use_cls": False,
    "Det.limit_type": "max",
    "Det.limit_side_len": _MAX_SIDE_PX,
}


def has_ocr() -> bool:
    """Return whether the extra `ocr` is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


def recognize_text(collection: Collection, rows: Sequence[int], cache: Path | None) -> dict[int, tuple[str, ...]]:
    """Read the text in images; return row -> lines from top to bottom, without rows that have none.

    Args:
        cache: file of what was read before; new lines are added to it. None keeps nothing.

    Raises:
        UserError: the extra is not installed.
    """
    if not has_ocr():
        raise UserError(f"text in images: RapidOCR is not installed; run `{INSTALL}`")
    known = {} if cache is None or not cache.is_file() else _read_cache(cache)
    sha256 = collection.index["sha256"]
    missing = [row for row in rows if sha256[row] not in known]
    if missing:
        known |= _recognize(collection, missing, cache)
    return {row: tuple(known[sha256[row]]) for row in rows if known.get(sha256[row])}


def open_engine() -> Any:
    """Return RapidOCR's engine; a call with pixels [H, W, 3] in the order BGR gives lines and their scores."""
    return importlib.import_module(_PACKAGE).RapidOCR(params=_SETTINGS)


def read_lines(engine: Any, data: bytes) -> list[str]:
    """Return lines with a score of at least .5, in the engine's reading order.

    Raises:
        BadImage: the file cannot be decoded.
    """
    image = decode(data, longest_side=_MAX_SIDE_PX)
    found = engine(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    pairs = zip(found.txts or (), found.scores or (), strict=True)
    return [str(text) for text, score in pairs if float(score) >= _MIN_SCORE and str(text).strip()]


def _read_cache(path: Path) -> dict[str, list[str]]:
    # The last line of a run that was killed may be cut off.
    return {row["sha256"]: row["lines"] for _, row in iterate_json_lines(path) if isinstance(row, dict)}


def _recognize(collection: Collection, rows: Sequence[int], cache: Path | None) -> dict[str, list[str]]:
    engine, lines_of = open_engine(), dict[str, list[str]]()
    if cache is not None:
        cache.parent.mkdir(exist_ok=True)
    for row in track(rows, description="text in images"):
        sha256 = str(collection.index["sha256"][row])
        try:
            lines = read_lines(engine, collection.image_bytes(row))
        except BadImage:
            # Nothing is kept for a file that cannot be read now, since a later run may be able to read it.
            continue
        lines_of[sha256] = lines
        if cache is not None:
            with name_in_errors(cache), cache.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"sha256": sha256, "lines": lines}) + "\n")
    return lines_of
