"""Material for training targets: short captions, recognized text, descriptions, and the AltText of each image.

A source is a row of `SOURCES`, here or in what `foveate.core.plugins` adds to this module. Text in images is recognized
by RapidOCR (PP-OCRv4 on onnxruntime), an extra for Pythons below 3.13; its lines are cached in the collection, one JSON
line per image, so that a stopped run does not repeat them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foveate.caption.settings import TargetSettings
from foveate.core.errors import UserError, choose
from foveate.core.plugins import load_row
from foveate.core.progress import say
from foveate.records import ocr
from foveate.records.captions import select_alt_text
from foveate.records.collection import Collection


@dataclass(frozen=True, slots=True)
class Material:
    """Texts that the targets of one image are made from.

    Attributes:
        row, key: of the image in the collection.
        source: name of the source that it comes from.
        short: short captions by different people.
        written: text recognized in the image.
        descriptions: full descriptions.
        formats: caption kind -> exact text, where the truth is known; used instead of rewrites of a description.
        describe: returns the dsc of `formats` with a fact first, for an AltText that names the fact.
        alt: the AltText that came with the image.
        alt_clean: whether the AltText is known to be true; None if unknown.
        facts: further words that are known to hold (labels).
    """

    row: int
    key: str
    source: str
    short: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    describe: Callable[[str], str] | None = None
    alt: str = ""
    alt_clean: bool | None = None
    facts: tuple[str, ...] = ()

    def inputs(self) -> list[str]:
        """List all texts that a target may take its words from."""
        exact = self.formats.values()
        return [*self.short, *self.written, *self.descriptions, *exact, *self.facts]


def read_written(collection: Collection, rows: Sequence[int], which: str) -> dict[int, tuple[str, ...]]:
    """Recognize text in images; return row -> lines from top to bottom, without rows that have none.

    Args:
        which: "none", "rapidocr", or "auto": "rapidocr" if it is installed, else "none" with a message.

    Raises:
        UserError: `which` is "rapidocr", and it is not installed.
    """
    if which == "none" or not rows:
        return {}
    if not ocr.has_ocr():
        if which == "rapidocr":
            raise UserError(f"field ocr: 'rapidocr' is not installed; {ocr.INSTALL}, or set ocr=none")
        say(f"no OCR is installed: text in {len(rows)} images is not used for targets; {ocr.INSTALL}")
        return {}
    is_writable = os.access(collection.path, os.W_OK)
    return ocr.recognize_text(collection, rows, collection.path / "cache" / ocr.FILE if is_writable else None)


def read_texts(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> list[Material]:
    """Read material of rows that have a caption of one of the named kinds."""
    if not settings.short_kinds and not settings.description_kinds:
        return []
    texts = {}
    for row in rows.tolist():
        captions = collection.read_captions(row)
        short, long = (
            tuple(" ".join(c.text.split()) for c in captions if c.kind in kinds and c.text.strip())
            for kinds in (settings.short_kinds, settings.description_kinds)
        )
        if short or long:
            texts[row] = short, long, select_alt_text(captions, settings.alt_kinds)
    # Recognize only images with a caption: recognition takes most of the time.
    written = read_written(collection, list(texts), settings.ocr)
    return [
        Material(
            row=row,
            key=collection.keys[row],
            source="texts",
            short=short,
            written=written.get(row, ()),
            descriptions=long,
            alt=alt,
        )
        for row, (short, long, alt) in texts.items()
    ]


SOURCES = {"texts": read_texts}


def read_material(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> tuple[list[Material], dict[str, int]]:
    """Read material of all rows that a source has something for.

    Returns:
        Material, ascending by row, and the number of images by source, with "none" for those without.

    Raises:
        UserError: a source is unknown, or no caption is of a kind that the settings name.
    """
    _check_kinds(collection, settings)
    by_row: dict[int, Material] = {}
    counts: dict[str, int] = {}
    for name in settings.sources:
        read = load_row(__name__, name, "SOURCES", label="field sources")
        # The first source that knows an image has it: a scene's truth is better than its captions.
        remaining = np.asarray([row for row in rows.tolist() if row not in by_row], dtype=np.int64)
        materials = read(collection, remaining, settings, seed=seed)
        by_row |= {material.row: material for material in materials}
        counts[name] = len(materials)
    counts["none"] = len(rows) - len(by_row)
    return [by_row[row] for row in sorted(by_row)], counts


def _check_kinds(collection: Collection, settings: TargetSettings) -> None:
    named = {"short_kinds": settings.short_kinds, "description_kinds": settings.description_kinds}
    if not any(named.values()):
        return
    # A misspelled kind would otherwise give a training set without it.
    available = collection.table("captions")["kind"].unique().to_pylist()
    for name, kinds in named.items():
        for kind in kinds:
            choose(kind, available, f"caption kind ({name})")
