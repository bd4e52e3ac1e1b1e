"""Import rules of Timelapse 2.5 for recognition files, restated from its published source field by field.

Source: github.com/saulgreenberg/Timelapse, `Recognition/Recognizer.cs` (fields and their types),
`Recognition/RecognitionDatabases.cs` (what becomes a row), and the refusals that the specification of the format's
users lists: AddaxAI's own files, names that occur twice, thresholds that are assumed.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

_LABELS_OF_ITS_OWN = ("empty", "no detection")  # Timelapse adds category 0 with this label
_MIN_CONFIDENCE = 0.03  # boxes below are dropped


def list_timelapse_faults(content: dict[str, Any]) -> list[str]:
    """Return why Timelapse would refuse or spoil a file, each with the field; none for one that it takes whole."""
    info = content["info"]
    faults = [f"info.{name}" for name in ("format_version", "detector") if not isinstance(info.get(name), str)]
    boxes: dict[str, str] = content["detection_categories"]
    classes: dict[str, str] = content.get("classification_categories", {})
    if classes and classes[min(classes)] in boxes.values():
        faults.append("classification_categories: made by AddaxAI outside of Timelapse")
    for name, labels in (("detection_categories", boxes), ("classification_categories", classes)):
        if not all(isinstance(text, str) and text for pair in labels.items() for text in pair):
            faults.append(f"{name}: expected texts")
        elif len({label.lower() for label in labels.values()}) < len(labels):
            faults.append(f"{name}: names occur twice")
    if "0" in boxes or any(label.lower() in _LABELS_OF_ITS_OWN for label in boxes.values()):
        faults.append("detection_categories: what Timelapse adds as category 0")
    for part, fields in (
        ("detector", ("typical_detection_threshold", "conservative_detection_threshold")),
        ("classifier", ("typical_classification_threshold",)),
    ):
        thresholds = info.get(f"{part}_metadata", {})
        if part in info:
            faults += [f"info.{part}_metadata.{name}" for name in fields if not isinstance(thresholds.get(name), float)]
    descriptions: dict[str, str] = content.get("classification_category_descriptions", {})
    if descriptions.keys() - classes.keys() or any(text.count(";") != 6 for text in descriptions.values()):
        faults.append("classification_category_descriptions: not seven fields, or of no class")
    for number, image in enumerate(content["images"]):
        faults += [f"images[{number}].{fault}" for fault in _list_image_faults(image, boxes, classes)]
    return faults


def _list_image_faults(image: dict[str, Any], boxes: dict[str, str], classes: dict[str, str]) -> list[str]:
    """Faults of an entry: it is looked up by folder and file name, and only its best class is read."""
    faults = []
    path = PurePosixPath(image["file"])
    if path.is_absolute() or "\\" in image["file"] or {".", ".."} & set(image["file"].split("/")):
        faults.append("file: not relative to the root folder of the image set")
    detections = image["detections"]
    if detections is None:
        return faults if isinstance(image.get("failure"), str) else [*faults, "detections: null without a failure"]
    if detections and path.suffix.lower() not in (".jpg", ".jpeg") and not image.get("frame_rate"):
        faults.append("file: boxes of what is neither JPEG nor a video are dropped")
    for detection in detections:
        x, y, width, height = detection["bbox"]
        if min(x, y, width, height) < 0 or max(x + width, y + height) > 1:
            faults.append("bbox: outside of the image")
        if detection["category"] not in boxes:
            faults.append("category: not in detection_categories")
        if not isinstance(detection["conf"], float) or not _MIN_CONFIDENCE <= detection["conf"] <= 1:
            faults.append("conf: no number with a decimal point, or too low to be kept")
        pairs = detection.get("classifications", [])
        if any(not isinstance(name, str) or name not in classes for name, _ in pairs):
            faults.append("classifications: a category that is no text, or not in classification_categories")
        if [score for _, score in pairs] != sorted((score for _, score in pairs), reverse=True):
            faults.append("classifications: the first is not the best")
    return faults
