"""Ground floor: what an image carries, and collections of images on disk. No torch here."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "Box": "foveate.records.boxes",
    "Collection": "foveate.records.collection",
    "Mask": "foveate.records.shapes",
    "PixelBox": "foveate.records.boxes",
    "PixelXYWH": "foveate.records.boxes",
    "Point": "foveate.records.shapes",
    "Record": "foveate.records.record",
    "Region": "foveate.records.record",
    "Stroke": "foveate.records.shapes",
    "parse_boxes": "foveate.records.box_text",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
