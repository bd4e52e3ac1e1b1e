"""Ground floor: what an image carries, and collections of images on disk. No torch here."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "Box": "foveate.records.boxes",
    "Caption": "foveate.records.record",
    "Collection": "foveate.records.collection",
    "CollectionWriter": "foveate.records.writer",
    "Conversation": "foveate.records.conversations",
    "Conversations": "foveate.records.conversations",
    "CoordinateFrame": "foveate.records.importers.coordinates",
    "Mask": "foveate.records.shapes",
    "PixelBox": "foveate.records.boxes",
    "PixelXYWH": "foveate.records.boxes",
    "Point": "foveate.records.shapes",
    "Record": "foveate.records.record",
    "Region": "foveate.records.record",
    "Stroke": "foveate.records.shapes",
    "Turn": "foveate.records.conversations",
    "add_conversations": "foveate.records.conversations",
    "export_coco": "foveate.records.exporters.coco",
    "export_datasets": "foveate.records.exporters.datasets",
    "export_fiftyone": "foveate.records.exporters.fiftyone",
    "export_label_studio": "foveate.records.exporters.label_studio",
    "export_webdataset": "foveate.records.exporters.webdataset",
    "export_yolo": "foveate.records.exporters.yolo",
    "format_region": "foveate.records.box_text",
    "intersection_over_union": "foveate.records.boxes",
    "pairwise_iou": "foveate.records.boxes",
    "parse_boxes": "foveate.records.box_text",
    "parse_regions": "foveate.records.box_text",
    "write_samples": "foveate.records.samples",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
