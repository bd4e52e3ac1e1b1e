"""Read results of MegaDetector, formats 1.0 to 1.6: boxes, their classes, failures and videos.

What is only doubtful is repaired and counted; what contradicts itself is refused with the file,
the record and the field. The published validator lets unsorted classifications, boxes outside of the image, NaN and
files that occur twice pass; this reader does not.

Source: https://github.com/agentmorris/MegaDetector, "Batch processing API output format", 1.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from foveate.records.importers.files import is_number
from foveate.survey.detections import ClassLabel, DetectedImage, Detection, DetectionResults, get_kind
from foveate.survey.file_index import VIDEO_SUFFIXES
from foveate.survey.importers.results_parser import ResultsParser

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
