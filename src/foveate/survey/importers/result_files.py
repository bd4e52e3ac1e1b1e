"""Read results of MegaDetector, formats 1.0 to 1.6, and predictions of SpeciesNet: boxes, classes, failures, videos.

`foveate.survey.verdicts` says what is repaired and counted, what is left out, and what is refused with the file, the
record and the field.

SpeciesNet has an old layout (a class for each image) and a new one (for each box), recognized by their fields, for old
files state no version. Labels have seven fields; scores belong to classes by position, so an unsorted list is refused,
not sorted: it may as well be a list of the wrong order.

Source: https://github.com/agentmorris/MegaDetector, "Batch processing API output format", 1.6;
https://github.com/google/cameratrapai, README (March 2025) and speciesnet 5.0.6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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
from foveate.survey.exporters.megadetector import BOX_SUFFIX, UNKNOWN, describe
from foveate.survey.file_index import VIDEO_SUFFIXES, is_absolute, normalize_path
from foveate.survey.verdicts import Judge, LeftOutError

# A box may leave the image by rounding or by a padded input; one that ends beyond twice the image is in pixels.
_MAX_CORNER = 2.0

_WHOLE_FRAME = Box(0.0, 0.0, 1.0, 1.0)


class ResultsParser(Judge):
    """Checks of the fields that both formats have, by the table of verdicts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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
            raise self.reject("no-path", where, f"expected the path of an image (got {value!r:.40})")
        # The format allows backslashes and absolute paths, so both are counted as repairs instead of refused.
        self.count("backslashes", "\\" in value)
        self.count("absolute-path", is_absolute(value))
        file = normalize_path(value)
        if file in self._positions:
            problem = f"{file!r} occurs twice, first as {self._positions[file]}; which one counts?"
            raise self.reject("file-twice", where, problem)
        self._positions[file] = where
        return file

    def parse_category(self, value: object) -> str:
        """Return the id of a category as the text that the tables of categories use."""
        if isinstance(value, int) and not isinstance(value, bool):
            self.count("number-as-category")
        return str(value)

    def parse_score(self, value: object, where: str) -> float:
        """Return a score in [0, 1]."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.reject("score", where, f"expected a number in [0, 1] (got {value!r:.40})")
        # 1 means 1.0, but the public validator wants the decimal point.
        self.count("integer-score", isinstance(value, int))
        # NaN compares false, so it is refused, too.
        if not 0 <= value <= 1:
            raise self.reject("score", where, f"expected a number in [0, 1] (got {value})")
        return float(value)

    def parse_pairs(self, value: object, labels: Mapping[str, ClassLabel], where: str) -> tuple[ScoredLabel, ...]:
        """Return (class, score) pairs of MegaDetector, best first."""
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.reject("pair", where, f"expected a list of [category, score] (got {value!r:.40})")
        scored = []
        for position, pair in enumerate(value):
            at = f"{where}[{position}]"
            if not isinstance(pair, list) or len(pair) < 2:
                raise self.reject("pair", at, f"expected [category, score] (got {pair!r:.40})")
            self.count("long-pair", len(pair) > 2)
            number = self.parse_category(pair[0])
            if number not in labels:
                raise self.reject("category", at, f"category {number!r} is not in classification_categories")
            scored.append((labels[number], self.parse_score(pair[1], at)))
        if any(first[1] < second[1] for first, second in zip(scored, scored[1:], strict=False)):
            self.count("unsorted")
            scored.sort(key=lambda pair: -pair[1])
        return tuple(scored)

    def parse_box(self, value: object, where: str) -> Box | None:
        """Return the box `[x, y, width, height]` in fractions, clipped to the image; None if nothing is left of it."""
        if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
            raise self.reject("box", where, f"expected [x, y, width, height] (got {value!r:.60})")
        x, y, width, height = map(float, value)
        if width < 0 or height < 0:
            raise self.reject("box", where, f"width and height must not be negative (got {value})")
        corners = (x, y, x + width, y + height)
        if min(corners) < -_MAX_CORNER or max(corners) > _MAX_CORNER:
            raise self.reject("box-in-pixels", where, f"expected fractions of the image, not pixels (got {value})")
        # A detector with padded input may return a box that leaves the image; clipping removes only padding.
        clipped = [min(max(corner, 0.0), 1.0) for corner in corners]
        if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
            self.count("empty-box")
            return None
        self.count("clipped-box", max(-x, -y, corners[2] - 1, corners[3] - 1) > EDGE_ROUNDING)
        return Box(*clipped)


KNOWN_VERSIONS = ("1.3", "1.4", "1.5", "1.6")
# Fields of a video became mandatory with these versions.
_FRAME_RATE_SINCE, _FRAMES_SINCE = 1.4, 1.5
_OLDEST_CHECKED = 1.3  # the public validator takes no older files


def parse_results(content: dict[str, Any], path: Path) -> DetectionResults:
    """Return the results in the content of a file of MegaDetector.

    Raises:
        UserError: a record contradicts itself; the error names record and field.
    """
    parser = ResultsParser(path)
    info = parser.get(content, "info", dict, where="the file")
    version = _parse_version(info, parser)
    categories = _parse_names(content, "detection_categories", parser)
    categories = {number: name.removesuffix(BOX_SUFFIX) for number, name in categories.items()}
    labels: dict[str, ClassLabel] = {}
    if content.get("classification_categories") is not None:
        names = _parse_names(content, "classification_categories", parser)
        descriptions = _parse_descriptions(content.get("classification_category_descriptions"), parser)
        labels = {number: _make_label(name, descriptions.get(number, "")) for number, name in names.items()}
    entries = parser.get(content, "images", list, where="the file")
    images = []
    for position, entry in enumerate(entries):
        try:
            images.append(_parse_image(entry, f"images[{position}]", version, categories, labels, parser))
        except LeftOutError:
            pass  # it is counted, and named in the summary
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
        repairs=parser.counts,
        named=parser.named,
    )


def _parse_version(info: Mapping[str, Any], parser: ResultsParser) -> float:
    written = info.get("format_version")
    # Files before 1.6 may have numbers.
    if is_number(written):
        parser.count("number-as-version")
        written = str(float(written))
    if not isinstance(written, str) or not re.fullmatch(r"\d+(\.\d+)?", written.strip()):
        problem = f"expected a version such as '1.6' (got {written!r:.40})"
        raise parser.reject("no-version", "info.format_version", problem)
    version = float(written)
    parser.count("old-version", version < _OLDEST_CHECKED)
    parser.count("other-version", version > _OLDEST_CHECKED and written.strip() not in KNOWN_VERSIONS)
    return version


def _make_label(name: str, description: str) -> ClassLabel:
    # Our exporter completes a name that another class has: the description still has the name itself.
    common = description.rpartition(";")[2]
    if description.count(";") == NUM_FIELDS - 1 and common and re.fullmatch(rf"{re.escape(common)} \(.+\)", name):
        name = common
    # Descriptions of other forms become the seven fields, as they are written again.
    description = describe(ClassLabel(name, description)) if description else ""
    # It also uses the name as the description of a class without one, because other tools require it.
    says_more = description != ClassLabel.from_lineage(name, "", {}).description
    return ClassLabel(name, description if says_more else "")


def _parse_names(content: Mapping[str, Any], field: str, parser: ResultsParser) -> dict[str, str]:
    names = parser.get(content, field, dict, where="the file")
    for number, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise parser.reject("unnamed-category", f"{field}.{number}", f"expected a name (got {name!r:.40})")
        parser.count("text-as-category", not re.fullmatch(r"-?\d+", number.strip()))
    return names


def _parse_descriptions(value: object, parser: ResultsParser) -> dict[str, str]:
    entries = value if isinstance(value, dict) else {}
    parser.count("description", value is not None and not isinstance(value, dict))
    parser.count("description", sum(not isinstance(text, str) for text in entries.values()))
    return {number: text for number, text in entries.items() if isinstance(text, str)}


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
            problem = f"{failure!r:.40} beside detections; expected null as detections"
            raise parser.reject("failure-and-detections", f"{where}.failure", problem)
    elif not isinstance(detections, list):
        rule = "not-processed" if "failure" in entry and detections is None else "no-detections"
        problem = f"expected a list, or a 'failure' (got {detections!r:.40})"
        raise parser.reject(rule, f"{where}.detections", problem, name=file)
    frame_rate, frames = None, None
    is_video = PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES
    # A video that could not be opened has neither rate nor frames.
    if is_video and failure is None:
        frame_rate, frames = _parse_video(entry, where, version, parser)
    boxes, is_empty, has_species = [], False, False
    for position, detection in enumerate(detections or []):
        at = f"{where}.detections[{position}]"
        parsed = _parse_detection(detection, at, categories, labels, parser)
        if is_video and version >= _FRAME_RATE_SINCE and "frame_number" not in detection:
            raise parser.reject("frame-number", f"{at}.frame_number", "missing, of a detection in a video")
        if parsed is not None:
            boxes.append(parsed)
            has_species |= _has_species(parsed)
        is_empty |= _is_empty(str(detection["category"]), categories)
    parser.count("empty-and-species", is_empty and has_species, name=_name_species(file, boxes))
    time = _text(entry.get("datetime"))
    return DetectedImage(file, tuple(boxes), failure or "", time=time, frame_rate=frame_rate, frames=frames)


def _parse_video(
    entry: Mapping[str, Any], where: str, version: float, parser: ResultsParser
) -> tuple[float | None, tuple[int, ...] | None]:
    rate, frames = entry.get("frame_rate"), entry.get("frames_processed")
    if version >= _FRAME_RATE_SINCE or rate is not None:
        # NaN and infinity, which Python's JSON reads, fail the comparison.
        if not is_number(rate) or rate < 0:
            problem = f"expected frames a second of this video (got {rate!r:.40})"
            raise parser.reject("frame-rate", f"{where}.frame_rate", problem)
    # Null says that the frames are not known, as of a file before 1.5.
    if (version >= _FRAMES_SINCE and "frames_processed" not in entry) or frames is not None:
        if not isinstance(frames, list) or not all(isinstance(frame, int) for frame in frames):
            problem = f"expected the numbers of frames (got {frames!r:.40})"
            raise parser.reject("frames", f"{where}.frames_processed", problem)
    return None if rate is None else float(rate), None if frames is None else tuple(frames)


def _parse_detection(
    entry: object, where: str, categories: Mapping[str, str], labels: Mapping[str, ClassLabel], parser: ResultsParser
) -> Detection | None:
    if not isinstance(entry, dict):
        raise parser.error(where, f"expected an object (got {type(entry).__name__})")
    number = parser.parse_category(entry.get("category"))
    is_empty = _is_empty(number, categories)
    if number not in categories and not is_empty:
        allowed = ", ".join(categories)
        problem = f"not in detection_categories (got {number!r}); expected {allowed}"
        raise parser.reject("category", f"{where}.category", problem)
    scored = parser.parse_pairs(entry.get("classifications"), labels, f"{where}.classifications")
    if is_empty and not (scored and scored[0][0].is_species):
        # No published category, but some tools write it for "nothing here".
        parser.count("empty-category")
        return None
    confidence = parser.parse_score(entry.get("conf"), f"{where}.conf")
    frame = entry.get("frame_number")
    if isinstance(frame, float) and frame.is_integer():
        parser.count("fraction-as-frame")
        frame = int(frame)
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        problem = f"expected the number of a frame (got {frame!r:.40})"
        raise parser.reject("frame-number", f"{where}.frame_number", problem)
    raw = parser.parse_pairs(entry.get("raw_classifications"), labels, f"{where}.raw_classifications")
    # What is called empty needs no box, but the species of it is never lost.
    has_box = not is_empty or entry.get("bbox") is not None
    box = parser.parse_box(entry.get("bbox"), f"{where}.bbox") if has_box else _WHOLE_FRAME
    category = UNKNOWN if is_empty else categories[number]
    return None if box is None else Detection(category, confidence, box, scored, raw, frame)


def _is_empty(number: str, categories: Mapping[str, str]) -> bool:
    """Whether a category means "nothing here"; 0 does where no table names it."""
    return get_kind(categories.get(number, "empty" if number == "0" else "animal")) == "blank"


def _has_species(detection: Detection) -> bool:
    return bool(detection.classifications) and detection.classifications[0][0].is_species


def _name_species(file: str, boxes: Sequence[Detection]) -> str:
    """Return the file with the species of its boxes, as a summary names it."""
    taxa = dict.fromkeys(box.classifications[0][0].taxon for box in boxes if _has_species(box))
    return f"{file} ({', '.join(taxa)})"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# A new file of the whole-image model has its class at a detection that is none.
WHOLE_IMAGE, WHOLE_IMAGE_LABEL = "0", "whole_image_classification"
_HUMAN = "990ae9dd-7a59-4344-afcb-1b7b21368000;mammalia;primates;hominidae;homo;sapiens;human"


def parse_predictions(content: dict[str, Any], path: Path) -> DetectionResults:
    """Return the results in the content of a predictions file.

    Raises:
        UserError: a record contradicts itself; the error names record and field.
    """
    parser = ResultsParser(path)
    labels: dict[str, ClassLabel] = {}
    entries = parser.get(content, "predictions", list, where="the file")
    images, versions, names = [], set(), {}
    for position, entry in enumerate(entries):
        where = f"predictions[{position}]"
        if not isinstance(entry, dict):
            raise parser.error(where, f"expected an object (got {type(entry).__name__})")
        images.append(_parse_predicted_image(entry, where, labels, names, parser))
        versions.add(str(entry.get("model_version", "")))
        entries[position] = None  # frees the parsed JSON while the rows are made
    info = content.get("info")
    version = str(info.get("format_version", "")) if isinstance(info, dict) else ""
    # Files of the old layout, whose classes belong to images, state no version.
    is_new = any(box.classifications or box.raw_classifications for image in images for box in image.detections)
    parser.count("new-without-version", is_new and not version)
    model = " ".join(["SpeciesNet", *sorted(versions - {""})])
    categories = dict.fromkeys(box.category for image in images for box in image.detections)
    return DetectionResults(
        images=images,
        format=f"SpeciesNet {version}".strip(),
        detector=model,
        classifier=model,
        categories=tuple(categories),
        labels=tuple(labels.values()),
        repairs=parser.counts,
        named=parser.named,
    )


def _parse_predicted_image(
    entry: Mapping[str, Any],
    where: str,
    labels: dict[str, ClassLabel],
    names: dict[str, str],
    parser: ResultsParser,
) -> DetectedImage:
    """Return an image; `names` has the label of each category so far."""
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
        classes = ("raw_classifications", "processed_classification")
        parser.count("no-classes", any(name in detection and detection[name] is None for name in classes))
        if "category" not in detection:
            raise parser.reject("category", f"{at}.category", "is missing")
        number, category = parser.parse_category(detection["category"]), parser.get(detection, "label", str, where=at)
        if names.setdefault(number, WHOLE_IMAGE_LABEL if number == WHOLE_IMAGE else category) != category:
            problem = f"{category!r} of category {number!r}; expected {names[number]!r}"
            raise parser.reject("two-labels", f"{at}.label", problem)
        if number == WHOLE_IMAGE:
            prediction = processed or (Prediction(*box_raw[0], "classifier") if box_raw else prediction)
            raw = box_raw or raw
            continue
        scored = ((processed.label, processed.score),) if processed else box_raw[:1]
        confidence = parser.parse_score(detection.get("conf"), f"{at}.conf")
        box = parser.parse_box(detection.get("bbox"), f"{at}.bbox")
        if box is not None:
            # The name that MegaDetector uses for the same class.
            boxes.append(Detection("person" if category == "human" else category, confidence, box, scored, box_raw))
    if prediction is not None and prediction.label.kind == "blank":
        is_species = any(map(_has_species, boxes))
        parser.count("empty-and-species", is_species, name=_name_species(file, boxes))
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
        problem = f"'classes' has {len(classes)} entries, 'scores' has {len(scores)}"
        raise parser.reject("lengths", where, problem)
    parser.count("no-classes", not classes)
    scored, previous = [], math.inf
    for position, (text, score) in enumerate(zip(classes, scores, strict=True)):
        number = parser.parse_score(score, f"{where}.scores[{position}]")
        if number > previous:
            problem = f"expected descending scores (got {number} after {previous})"
            raise parser.reject("unsorted-positions", f"{where}.scores[{position}]", problem)
        previous = number
        scored.append((_parse_label(text, f"{where}.classes[{position}]", labels, parser), number))
    return tuple(scored)


def _parse_label(value: object, where: str, labels: dict[str, ClassLabel], parser: ResultsParser) -> ClassLabel:
    if not isinstance(value, str) or value.count(";") != NUM_FIELDS - 1:
        problem = f"expected a label of seven fields, divided by ';' (got {value!r:.80})"
        raise parser.reject("label", where, problem)
    # The rules of SpeciesNet roll people up to the genus, which no reader of the results means.
    text = _HUMAN if ";hominidae;homo;" in value else value
    if text not in labels:
        labels[text] = ClassLabel(text.rsplit(";", 1)[1], text)
    return labels[text]
