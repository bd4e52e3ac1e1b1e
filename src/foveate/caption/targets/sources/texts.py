"""Any collection: captions of the kinds that the recipe names, and recognized text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.caption.targets.material import Material
from foveate.caption.targets.ocr import recognize_text
from foveate.caption.targets.settings import TargetSettings
from foveate.records.captions import select_alt_text
from foveate.records.collection import Collection


def read(collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int) -> list[Material]:
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
    written = recognize_text(collection, list(texts), settings.ocr)
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
