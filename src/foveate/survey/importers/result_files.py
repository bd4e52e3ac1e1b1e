"""Read results of MegaDetector, formats 1.0 to 1.6, and predictions of SpeciesNet: boxes, classes, failures, videos.

What is only doubtful is repaired and counted; what contradicts itself is refused with the file,
the record and the field. The published validator lets unsorted classifications, boxes outside of the image, NaN and
files that occur twice pass; this reader does not.

SpeciesNet has an old layout (a class for each image) and a new one (for each box), recognized by their fields, for old
files state no version. Labels have seven fields; scores belong to classes by position, so an unsorted list is refused,
not sorted: it may as well be a list of the wrong order.

Source: https://github.com/agentmorris/MegaDetector, "Batch processing API output format", 1.6;
https://github.com/google/cameratrapai, README (March 2025) and speciesnet 5.0.6.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.records.boxes import EDGE_ROUNDING, Box
from foveate.records.importers.files import is_number
from foveate.survey.detections import (
    NUM_FIELDS,
    ClassLabel,
    DetectedImage,
    Detection,
    DetectionResults,
    Prediction,
    ScoredLabel,
    get_kind,
)
from foveate.survey.file_index import VIDEO_SUFFIXES, is_absolute, normalize_path

# A box may leave the image by rounding or by a padded input; one that ends beyond twice the image is in pixels.
_MAX_CORNER = 2.0

BACKSLASHES = "paths with back-slashes"
ABSOLUTE = "absolute paths (the drive or the leading slash was dropped)"
INTEGER_SCORES = "confidences written as integers"
UNSORTED = "lists of classifications that were not sorted"
CLIPPED = "boxes that left the image and were clipped"
EMPTY_BOXES = "boxes without any area in the image, left out"
NUMBER_AS_CATEGORY = "categories written as numbers"


class ResultsParser:
    """Checks of the fields that both formats have; counts what is doubtful, and refuses files that occur twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repairs: Counter[str] = Counter()
        self.contradictions = 0
        self._positions: dict[str, str] = {}

    def error(self, where: str, problem: str) -> UserError:
        """Make the error about a record or field of the file."""
        return UserError(f"{self.path}: {where}: {problem}")

    def get(self, entry: Mapping[str, Any], field: str, kind: type[Any], *, where: str) -> Any:
        """Return a field of the type `kind` that must be there."""
        if field not in entry:
            hint = nearest(field, map(str, entry))
            raise self.error(where, f"field {field!r} is missing{hint}")
        if not isinstance(entry[field], kind):
            expected = {dict: "an object", list: "a list", str: "a text"}[kind]
            raise self.error(where, f"field {field!r}: expected {expected} (got {type(entry[field]).__name__})")
        return entry[field]

    def parse_file(self, value: object, where: str) -> str:
        """Return the path with forward slashes and relative; raise UserError if the file occurred before."""
        if not isinstance(value, str) or not value.strip():
            raise self.error(where, f"expected the path of an image (got {value!r:.40})")
        # The format allows backslashes and absolute paths, so both are counted as repairs instead of refused.
        self.repairs[BACKSLASHES] += "\\" in value
        self.repairs[ABSOLUTE] += is_absolute(value)
        file = normalize_path(value)
        if file in self._positions:
            raise self.error(where, f"{file!r} occurs twice, first as {self._positions[file]}; which one counts?")
        self._positions[file] = where
        return file

    def parse_category(self, value: object) -> str:
        """Return the id of a category as the text that the tables of categories use."""
        if isinstance(value, int) and not isinstance(value, bool):
            self.repairs[NUMBER_AS_CATEGORY] += 1
        return str(value)

    def parse_score(self, value: object, where: str) -> float:
        """Return a score in [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(where, f"expected a number in [0, 1] (got {value!r:.40})")
        # 1 means 1.0, but the public validator wants the decimal point.
        self.repairs[INTEGER_SCORES] += isinstance(value, int)
        # NaN compares false, so it is refused, too.
        if not 0 <= value <= 1:
            raise self.error(where, f"expected a number in [0, 1] (got {value})")
        return float(value)

    def parse_pairs(self, value: object, labels: Mapping[str, ClassLabel], where: str) -> tuple[ScoredLabel, ...]:
        """Return (class, score) pairs of MegaDetector, best first."""
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(where, f"expected a list of [category, score] (got {value!r:.40})")
        scored = []
        for position, pair in enumerate(value):
            at = f"{where}[{position}]"
            if not isinstance(pair, list) or len(pair) != 2:
                raise self.error(at, f"expected [category, score] (got {pair!r:.40})")
            number = self.parse_category(pair[0])
            if number not in labels:
                raise self.error(at, f"category {number!r} is not in classification_categories")
            scored.append((labels[number], self.parse_score(pair[1], at)))
        if any(first[1] < second[1] for first, second in zip(scored, scored[1:], strict=False)):
            self.repairs[UNSORTED] += 1
            scored.sort(key=lambda pair: -pair[1])
        return tuple(scored)

    def parse_box(self, value: object, where: str) -> Box | None:
        """Return the box `[x, y, width, height]` in fractions, clipped to the image; None if nothing is left of it."""
        if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
            raise self.error(where, f"expected [x, y, width, height] (got {value!r:.60})")
        x, y, width, height = map(float, value)
        if width < 0 or height < 0:
            raise self.error(where, f"width and height must not be negative (got {value})")
        corners = (x, y, x + width, y + height)
        if min(corners) < -_MAX_CORNER or max(corners) > _MAX_CORNER:
            raise self.error(where, f"expected fractions of the image, not pixels (got {value})")
        # A detector with padded input may return a box that leaves the image; clipping removes only padding.
        clipped = [min(max(corner, 0.0), 1.0) for corner in corners]
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self.repairs[EMPTY_BOXES] += 1
            return None
        self.repairs[CLIPPED] += max(-x, -y, corners[2] - 1, corners[3] - 1) > EDGE_ROUNDING
        return Box(*clipped)


KNOWN_VERSIONS = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6")
# Fields of a video became mandatory with these versions.
_FRAME_RATE_SINCE, _FRAMES_SINCE = 1.4, 1.5
EMPTY_CATEGORY = "detections of the category 0 (empty), left out"
NUMBER_AS_VERSION = "format_version written as a number"
OTHER_VERSION = "format_version that this reader does not know"


def parse_results(content: dict[str, Any], path: Path) -> DetectionResults:
    """Return the results in the content of a file of MegaDetector.

    Raises:
        UserError: a record contradicts itself; the error names record and field.
    """
    parser = ResultsParser(path)
    info = parser.get(content, "info", dict, where="the file")
    version = _parse_version(info, parser)
    categories = _parse_names(content, "detection_categories", parser)
    labels: dict[str, ClassLabel] = {}
    if content.get("classification_categories") is not None:
        names = _parse_names(content, "classification_categories", parser)
        descriptions: dict[str, str] = {}
        if content.get("classification_category_descriptions") is not None:
            descriptions = _parse_names(content, "classification_category_descriptions", parser)
        labels = {number: _make_label(name, descriptions.get(number, "")) for number, name in names.items()}
    entries = parser.get(content, "images", list, where="the file")
    images = []
    for position, entry in enumerate(entries):
        images.append(_parse_image(entry, f"images[{position}]", version, categories, labels, parser))
        entries[position] = None  # frees the parsed JSON while the rows are made
    return DetectionResults(
        images=images,
        format=f"MegaDetector {version}",
        detector=_text(info.get("detector")),
        detected_at=_text(info.get("detection_completion_time")),
        classifier=_text(info.get("classifier")),
        classified_at=_text(info.get("classification_completion_time")),
        categories=tuple(categories.values()),
        labels=tuple(labels.values()),
        repairs=parser.repairs,
        contradictions=parser.contradictions,
    )


def _parse_version(info: Mapping[str, Any], parser: ResultsParser) -> float:
    written = info.get("format_version")
    # Files before 1.6 may have numbers.
    if is_number(written):
        parser.repairs[NUMBER_AS_VERSION] += 1
        written = str(float(written))
    if not isinstance(written, str) or not re.fullmatch(r"\d+(\.\d+)?", written.strip()):
        raise parser.error("info.format_version", f"expected a version such as '1.6' (got {written!r:.40})")
    if written.strip() not in KNOWN_VERSIONS:
        parser.repairs[OTHER_VERSION] += 1
    return float(written)


def _make_label(name: str, description: str) -> ClassLabel:
    # Our exporter uses the name as the description of a class without one, because other tools require it.
    says_more = description != ClassLabel.from_lineage(name, "", {}).description
    return ClassLabel(name, description if says_more else "")


def _parse_names(content: Mapping[str, Any], field: str, parser: ResultsParser) -> dict[str, str]:
    names = parser.get(content, field, dict, where="the file")
    for number, name in names.items():
        if not isinstance(name, str):
            raise parser.error(f"{field}.{number}", f"expected a text (got {name!r:.40})")
    return names


def _parse_image(
    entry: object,
    where: str,
    version: float,
    categories: Mapping[str, str],
    labels: Mapping[str, ClassLabel],
    parser: ResultsParser,
) -> DetectedImage:
    if not isinstance(entry, dict):
        raise parser.error(where, f"expected an object (got {type(entry).__name__})")
    file = parser.parse_file(entry.get("file"), f"{where}.file")
    where = f"{where} ({file})"
    failure, detections = entry.get("failure"), entry.get("detections")
    if failure is not None:
        if not isinstance(failure, str):
            raise parser.error(f"{where}.failure", f"expected a text (got {failure!r:.40})")
        if detections is not None:
            raise parser.error(f"{where}.failure", f"{failure!r:.40} beside detections; expected null as detections")
    elif not isinstance(detections, list):
        raise parser.error(f"{where}.detections", f"expected a list, or a 'failure' (got {detections!r:.40})")
    frame_rate, frames = None, None
    is_video = PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES
    # A video that could not be opened has neither rate nor frames.
    if is_video and failure is None:
        frame_rate, frames = _parse_video(entry, where, version, parser)
    boxes, is_empty, has_species = [], False, False
    for position, detection in enumerate(detections or []):
        at = f"{where}.detections[{position}]"
        parsed = _parse_detection(detection, at, categories, labels, parser)
        if (
            is_video
            and version >= _FRAME_RATE_SINCE
            and isinstance(detection, dict)
            and "frame_number" not in detection
        ):
            raise parser.error(f"{at}.frame_number", "missing, of a detection in a video")
        if parsed is not None:
            boxes.append(parsed)
        # A species goes with the detection that is left out as empty: never silently.
        is_empty |= get_kind(categories.get(str(detection["category"]), "empty")) == "blank"
        has_species |= _has_species(detection, labels)
    parser.contradictions += is_empty and has_species
    time = _text(entry.get("datetime"))
    return DetectedImage(file, tuple(boxes), failure or "", time=time, frame_rate=frame_rate, frames=frames)


def _parse_video(
    entry: Mapping[str, Any], where: str, version: float, parser: ResultsParser
) -> tuple[float | None, tuple[int, ...] | None]:
    rate, frames = entry.get("frame_rate"), entry.get("frames_processed")
    if version >= _FRAME_RATE_SINCE or rate is not None:
        # NaN and infinity, which Python's JSON reads, fail the comparison.
        if not is_number(rate) or rate <= 0:
            raise parser.error(f"{where}.frame_rate", f"expected frames a second of this video (got {rate!r:.40})")
    if version >= _FRAMES_SINCE or frames is not None:
        if not isinstance(frames, list) or not all(isinstance(frame, int) for frame in frames):
            raise parser.error(f"{where}.frames_processed", f"expected the numbers of frames (got {frames!r:.40})")
    return None if rate is None else float(rate), None if frames is None else tuple(frames)


def _parse_detection(
    entry: object, where: str, categories: Mapping[str, str], labels: Mapping[str, ClassLabel], parser: ResultsParser
) -> Detection | None:
    if not isinstance(entry, dict):
        raise parser.error(where, f"expected an object (got {type(entry).__name__})")
    number = parser.parse_category(entry.get("category"))
    if number not in categories:
        if number != "0":
            allowed = ", ".join(categories)
            raise parser.error(f"{where}.category", f"not in detection_categories (got {number!r}); expected {allowed}")
        # This category is not in the published table, but some tools write it for "nothing here".
        parser.repairs[EMPTY_CATEGORY] += 1
        return None
    confidence = parser.parse_score(entry.get("conf"), f"{where}.conf")
    frame = entry.get("frame_number")
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise parser.error(f"{where}.frame_number", f"expected the number of a frame (got {frame!r:.40})")
    scored = parser.parse_pairs(entry.get("classifications"), labels, f"{where}.classifications")
    raw = parser.parse_pairs(entry.get("raw_classifications"), labels, f"{where}.raw_classifications")
    box = parser.parse_box(entry.get("bbox"), f"{where}.bbox")
    return None if box is None else Detection(categories[number], confidence, box, scored, raw, frame)


def _has_species(entry: Mapping[str, Any], labels: Mapping[str, ClassLabel]) -> bool:
    """Whether the first class of a detection is a taxon; detections that are left out may have anything there."""
    pairs = entry.get("classifications")
    first = pairs[0] if isinstance(pairs, list) and pairs else None
    label = labels.get(str(first[0])) if isinstance(first, list) and first else None
    return label is not None and label.is_species


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


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
        images.append(_parse_predicted_image(entry, where, labels, parser))
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


def _parse_predicted_image(
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
