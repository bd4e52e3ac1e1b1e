"""Read predictions of SpeciesNet: the old layout (a class for each image) and the new one (for each box).

Recognized by their fields, for old files state no version. Labels have seven fields; scores belong to classes by
position, so an unsorted list is refused, not sorted: it may as well be a list of the wrong order.

Source: https://github.com/google/cameratrapai, README (March 2025) and speciesnet 5.0.6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.survey.detections import (
    NUM_FIELDS,
    ClassLabel,
    DetectedImage,
    Detection,
    DetectionResults,
    Prediction,
    ScoredLabel,
)
from foveate.survey.importers.results_parser import ResultsParser

# A new file of the whole-image model has its class at a detection that is none.
WHOLE_IMAGE = "0"
_HUMAN = "990ae9dd-7a59-4344-afcb-1b7b21368000;mammalia;primates;hominidae;homo;sapiens;human"


def parse_predictions(content: dict[str, Any], path: Path) -> DetectionResults:
    """Return the results in the content of a predictions file.

    Raises:
        UserError: a record contradicts itself; the error names record and field.
    """
    parser = ResultsParser(path)
    labels: dict[str, ClassLabel] = {}
    entries = parser.get(content, "predictions", list, where="the file")
    images, versions = [], set()
    for position, entry in enumerate(entries):
        where = f"predictions[{position}]"
        if not isinstance(entry, dict):
            raise parser.error(where, f"expected an object (got {type(entry).__name__})")
        images.append(_parse_image(entry, where, labels, parser))
        versions.add(str(entry.get("model_version", "")))
        entries[position] = None  # frees the parsed JSON while the rows are made
    info = content.get("info")
    version = info.get("format_version", "") if isinstance(info, dict) else ""
    model = " ".join(["SpeciesNet", *sorted(versions - {""})])
    categories = dict.fromkeys(box.category for image in images for box in image.detections)
    return DetectionResults(
        images=images,
        format=f"SpeciesNet {version}".strip(),
        detector=model,
        classifier=model,
        categories=tuple(categories),
        labels=tuple(labels.values()),
        repairs=parser.repairs,
        contradictions=parser.contradictions,
    )


def _parse_image(
    entry: Mapping[str, Any], where: str, labels: dict[str, ClassLabel], parser: ResultsParser
) -> DetectedImage:
    file = parser.parse_file(entry.get("filepath"), f"{where}.filepath")
    where = f"{where} ({file})"
    if entry.get("failures"):
        # Perhaps only one part failed, but the entry does not show which of its values are missing: skip them all.
        return DetectedImage(file, failure=str(entry["failures"]))
    detections = entry.get("detections", [])
    if not isinstance(detections, list):
        raise parser.error(f"{where}.detections", f"expected a list (got {detections!r:.40})")
    boxes, prediction = [], None
    raw = _parse_classes(entry.get("classifications"), f"{where}.classifications", labels, parser)
    if entry.get("prediction") is not None:
        label = _parse_label(entry["prediction"], f"{where}.prediction", labels, parser)
        score = parser.parse_score(entry.get("prediction_score"), f"{where}.prediction_score")
        prediction = Prediction(label, score, str(entry.get("prediction_source", "")))
    elif raw:
        prediction = Prediction(*raw[0], "classifier")
    for position, detection in enumerate(detections):
        at = f"{where}.detections[{position}]"
        if not isinstance(detection, dict):
            raise parser.error(at, f"expected an object (got {type(detection).__name__})")
        box_raw = _parse_classes(detection.get("raw_classifications"), f"{at}.raw_classifications", labels, parser)
        processed = _parse_processed(detection.get("processed_classification"), at, labels, parser)
        if parser.parse_category(detection.get("category")) == WHOLE_IMAGE:
            prediction = processed or (Prediction(*box_raw[0], "classifier") if box_raw else prediction)
            raw = box_raw or raw
            continue
        scored = ((processed.label, processed.score),) if processed else box_raw[:1]
        confidence = parser.parse_score(detection.get("conf"), f"{at}.conf")
        box = parser.parse_box(detection.get("bbox"), f"{at}.bbox")
        category = parser.get(detection, "label", str, where=at)
        if box is not None:
            # The name that MegaDetector uses for the same class.
            boxes.append(Detection("person" if category == "human" else category, confidence, box, scored, box_raw))
    if prediction is not None and prediction.label.kind == "blank":
        parser.contradictions += any(box.classifications and box.classifications[0][0].is_species for box in boxes)
    return DetectedImage(file, tuple(boxes), prediction=prediction, raw_prediction=raw)


def _parse_processed(
    value: object, where: str, labels: dict[str, ClassLabel], parser: ResultsParser
) -> Prediction | None:
    if value is None:
        return None
    where = f"{where}.processed_classification"
    if not isinstance(value, dict):
        raise parser.error(where, f"expected an object (got {value!r:.40})")
    label = _parse_label(value.get("class"), f"{where}.class", labels, parser)
    score = parser.parse_score(value.get("score"), f"{where}.score")
    return Prediction(label, score, str(value.get("source", "")))


def _parse_classes(
    value: object, where: str, labels: dict[str, ClassLabel], parser: ResultsParser
) -> tuple[ScoredLabel, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise parser.error(where, f"expected an object (got {value!r:.40})")
    classes = parser.get(value, "classes", list, where=where)
    scores = parser.get(value, "scores", list, where=where)
    if len(classes) != len(scores):
        raise parser.error(where, f"'classes' has {len(classes)} entries, 'scores' has {len(scores)}")
    scored, previous = [], math.inf
    for position, (text, score) in enumerate(zip(classes, scores, strict=True)):
        number = parser.parse_score(score, f"{where}.scores[{position}]")
        if number > previous:
            raise parser.error(
                f"{where}.scores[{position}]", f"expected descending scores (got {number} after {previous})"
            )
        previous = number
        scored.append((_parse_label(text, f"{where}.classes[{position}]", labels, parser), number))
    return tuple(scored)


def _parse_label(value: object, where: str, labels: dict[str, ClassLabel], parser: ResultsParser) -> ClassLabel:
    if not isinstance(value, str) or value.count(";") != NUM_FIELDS - 1:
        raise parser.error(where, f"expected a label of seven fields, divided by ';' (got {value!r:.80})")
    # The rules of SpeciesNet roll people up to the genus, which no reader of the results means.
    text = _HUMAN if ";hominidae;homo;" in value else value
    if text not in labels:
        labels[text] = ClassLabel(text.rsplit(";", 1)[1], text)
    return labels[text]
