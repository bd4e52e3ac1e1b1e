"""Write results in MegaDetector's format 1.6, as Timelapse, AddaxAI and megadetector-utils read it.

Timelapse 2.5 has rules that the format does not state (its source, April 2026): it takes a file whose first
classification category has the name of a detection category for one of AddaxAI's own and refuses it, and it wants
unique names. So a class with such a name ("animal", "person") never has the lowest number.

Source: https://github.com/agentmorris/MegaDetector, "Batch processing API output format", 1.6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from foveate.core.errors import UserError
from foveate.core.files import atomic_file
from foveate.records.boxes import Box
from foveate.survey.detections import (
    NUM_FIELDS,
    ClassLabel,
    DetectedImage,
    Detection,
    ScoredLabel,
    classify_boxes,
    get_kind,
)
from foveate.survey.file_index import VIDEO_SUFFIXES, normalize_path
from foveate.survey.taxa import load_builtin_taxa

VERSION = "1.6"
# MegaDetector's numbers; further categories of a detector come after them.
CATEGORIES: Mapping[str, str] = {"animal": "1", "person": "2", "vehicle": "3"}
UNKNOWN = "unknown"
"""Category of a box that no detector drew, as in the public conversion of SpeciesNet's results."""
BOX_SUFFIX = " (box)"
"""What completes the name of a category that a class has, too."""
# Numbers of classes that are named like a category; any other number is lower.
_FIRST_NAMESAKE = 1_000_000
# Beyond float32, in which boxes are stored, so that a file that is read and written again stays as it was.
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsInfo:
    """Header of a results file about the models that made it.

    Args:
        detector, classifier: names; a file without a classifier has no classes.
        detected_at, classified_at: times, "YYYY-MM-DD hh:mm:ss".
        detection_threshold: confidence from which boxes are worth a look: Timelapse selects by it.
        conservative_detection_threshold: confidence that misses next to nothing.
        classification_threshold: score from which Timelapse shows a class.

    Example:
        >>> ResultsInfo(detector="nanodet", classifier="my model").as_dict()["format_version"]
        '1.6'
    """

    detector: str
    classifier: str = ""
    detected_at: str = ""
    classified_at: str = ""
    detection_threshold: float = 0.2
    conservative_detection_threshold: float = 0.05
    classification_threshold: float = 0.5

    def as_dict(self) -> dict[str, object]:
        """Return the object `info` of a file."""
        info: dict[str, object] = {"format_version": VERSION, "detector": self.detector}
        info |= {"detection_completion_time": self.detected_at} if self.detected_at else {}
        # Timelapse selects by these thresholds, and assumes 0.2 and 0.5 where a file states none.
        info["detector_metadata"] = {
            "typical_detection_threshold": self.detection_threshold,
            "conservative_detection_threshold": self.conservative_detection_threshold,
        }
        if self.classifier:
            info["classifier"] = self.classifier
            info |= {"classification_completion_time": self.classified_at} if self.classified_at else {}
            info["classifier_metadata"] = {"typical_classification_threshold": self.classification_threshold}
        return info


@dataclass(slots=True)
class MegaDetectorExport:
    """Counts of an export.

    Args:
        made_up: boxes of the whole image, for images that have a class and no box of its kind.
        left_out: boxes of nothing, which a detector calls empty.
    """

    path: Path
    images: int = 0
    detections: int = 0
    failures: int = 0
    made_up: int = 0
    left_out: int = 0


def export_megadetector(path: str | Path, images: Iterable[DetectedImage], info: ResultsInfo) -> MegaDetectorExport:
    """Write a results file, image by image.

    Args:
        images: consumed lazily. Paths are written relative and with forward slashes.

    Raises:
        UserError: a file occurs twice, a video has no frame rate, or the file cannot be written.

    Example:
        >>> image = DetectedImage("0001.jpg", (Detection("animal", 0.93, Box(0.1, 0.2, 0.5, 0.6)),))
        >>> export_megadetector(new_folder / "results.json", [image], ResultsInfo(detector="nanodet")).detections
        1
    """
    path = Path(path)
    export = MegaDetectorExport(path)
    names = _Names()
    files: set[str] = set()
    with atomic_file(path) as binary:
        file = _Lines(binary)
        file.write(f'{{"info": {_encode(info.as_dict())},\n"images": [')
        for image in images:
            name = normalize_path(image.file)
            # Two records of one file contradict each other; `importers.megadetector` refuses them as well.
            if name in files:
                raise UserError(f"{path}: images[{export.images}].file: {name!r} occurs twice")
            files.add(name)
            file.write(",\n" if export.images else "\n")
            file.write(_encode(_make_entry(name, image, names, export, path)))
            export.images += 1
        file.write("\n]")
        # Write the tables after the images, because only then all names are known.
        for field_name, table in names.tables(has_classes=bool(info.classifier)).items():
            file.write(f',\n"{field_name}": {_encode(table)}')
        file.write("}\n")
    return export


def _make_entry(
    name: str, image: DetectedImage, names: _Names, export: MegaDetectorExport, path: Path
) -> dict[str, object]:
    entry: dict[str, object] = {"file": name}
    if image.time:
        entry["datetime"] = image.time
    if image.failure:
        export.failures += 1
        return {**entry, "failure": image.failure, "detections": None}
    is_video = PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES or image.frames is not None
    if is_video or any(detection.frame is not None for detection in image.detections):
        if image.frame_rate is None:
            raise UserError(f"{path}: {name}: field 'frame_rate' is missing, of a video")
        frames = None if image.frames is None else list(image.frames)
        entry |= {"frame_rate": float(image.frame_rate), "frames_processed": frames}
    boxes = [*classify_boxes(image)]
    detections = [
        _make_detection(detection, best, image, names)
        for detection, best in boxes
        if get_kind(detection.category) != "blank" or best is not None
    ]
    export.left_out += len(boxes) - len(detections)
    prediction = image.prediction
    if prediction is not None and prediction.label.kind in ("animal", "human", "vehicle"):
        # The format has no place for a class without a box. One of another kind or species is no place, either.
        has_box = any(get_kind(detection.category) == prediction.label.kind for detection, _ in boxes)
        is_said = any(best is not None and best[0] == prediction.label for _, best in boxes)
        if not is_said and (prediction.label.is_species or not has_box):
            export.made_up += 1
            whole = Detection(UNKNOWN, prediction.score, Box(0.0, 0.0, 1.0, 1.0))
            detections.append(_make_detection(whole, (prediction.label, prediction.score), image, names))
    export.detections += len(detections)
    return {**entry, "detections": detections}


def _make_detection(
    detection: Detection, best: ScoredLabel | None, image: DetectedImage, names: _Names
) -> dict[str, object]:
    box = detection.box
    # Timelapse has a category of its own for "empty"; a box of one that has a species is of an unknown kind.
    category = UNKNOWN if get_kind(detection.category) == "blank" else detection.category
    x, y = round(box.x1, _DIGITS), round(box.y1, _DIGITS)
    # Limit the size by the rounded corner, so that the box cannot end outside of the image.
    width, height = (
        min(round(box.width, _DIGITS), round(1 - x, _DIGITS)),
        min(round(box.height, _DIGITS), round(1 - y, _DIGITS)),
    )
    entry: dict[str, object] = {
        "category": names.category(category),
        "conf": round(float(detection.confidence), _DIGITS),
        "bbox": [x, y, width, height],
    }
    if detection.frame is not None:
        entry["frame_number"] = detection.frame
    scored = detection.classifications or ([best] if best else [])
    prediction = image.prediction
    if not scored and prediction is not None and prediction.label.kind in ("blank", "unknown"):
        # What a classifier of whole images says of this one stands beside its boxes, as in the public conversion.
        scored = [(prediction.label, prediction.score)]
    # So do its own scores, before rules changed them.
    raw = detection.raw_classifications or image.raw_prediction
    return entry | _make_classes("classifications", scored, names) | _make_classes("raw_classifications", raw, names)


def _make_classes(field_name: str, scored: Iterable[ScoredLabel], names: _Names) -> dict[str, object]:
    # Timelapse shows the first class of a box.
    ordered = sorted(scored, key=lambda pair: -pair[1])
    pairs = [[names.label(label), round(float(score), _DIGITS)] for label, score in ordered]
    return {field_name: pairs} if pairs else {}


class _Names:
    """Tables of categories, numbered as they occur."""

    def __init__(self) -> None:
        self._categories = dict(CATEGORIES)
        self._labels: dict[ClassLabel, str] = {}
        self._category_names = list(CATEGORIES)
        self._class_names: dict[str, str] = {}

    def category(self, name: str) -> str:
        """Return the number of a detection category."""
        # SpeciesNet calls the boxes of people "human", MegaDetector "person".
        name = "person" if name == "human" else name
        if name not in self._categories:
            self._categories[name] = str(len(self._categories) + 1)
            self._category_names.append(self._make_unique(name, BOX_SUFFIX.strip(" ()")))
        return self._categories[name]

    def label(self, label: ClassLabel) -> str:
        """Return the number of a class."""
        number = self._labels.get(label)
        if number is None:
            # Names of categories are said as they are, but with high numbers; see the module docstring.
            used = {name.lower() for name in self._class_names.values()}
            is_namesake = label.name.lower() in CATEGORIES and label.name.lower() not in used
            num_namesakes = sum(int(known) >= _FIRST_NAMESAKE for known in self._class_names)
            index = _FIRST_NAMESAKE + num_namesakes if is_namesake else len(self._class_names) - num_namesakes
            number = self._labels[label] = str(index)
            name = label.name if is_namesake else self._make_unique(label.name, label.taxon, label.taxon_id)
            self._class_names[number] = name
        return number

    def _make_unique(self, name: str, *additions: str) -> str:
        """Return the name, completed where another class or category has it: Timelapse wants them unique."""
        used = {known.lower() for known in (*self._category_names, *self._class_names.values())}
        candidates = [name, *(f"{name} ({addition})" for addition in additions if addition)]
        return next((each for each in candidates if each.lower() not in used), f"{name} ({len(used)})")

    def tables(self, *, has_classes: bool) -> dict[str, object]:
        """Return the tables of the file by field."""
        categories = dict(zip(self._categories.values(), self._category_names, strict=True))
        tables: dict[str, object] = {"detection_categories": categories}
        if has_classes or self._class_names:
            if self._class_names and "0" not in self._class_names:
                # There are only namesakes: a class that nothing has gets the lowest number.
                self.label(ClassLabel("blank"))
            tables["classification_categories"] = self._class_names
            descriptions = {number: describe(label) for label, number in self._labels.items()}
            tables["classification_category_descriptions"] = descriptions
        return tables


def describe(label: ClassLabel) -> str:
    """Return a class as SpeciesNet's seven fields: other tools take the scientific name from nothing else.

    >>> describe(ClassLabel("red fox", "animalia;chordata;mammalia;carnivora;canidae;vulpes vulpes"))
    ';mammalia;carnivora;canidae;vulpes;vulpes;red fox'
    >>> describe(ClassLabel("dog family", "Canidae"))
    ';;;canidae;;;dog family'
    """
    fields = label.description.split(";")
    if len(fields) == NUM_FIELDS:
        return label.description
    # Six fields are MegaDetector's own, from the kingdom down to the binomial.
    lineage = dict(zip(("class", "order", "family", "species"), fields[2:], strict=True)) if len(fields) == 6 else {}
    # Without a description the taxon is the name itself: no scientific one is known.
    if not lineage and label.description and label.taxon != label.name:
        lineage = {_guess_rank(label.taxon): label.taxon}
    return ClassLabel.from_lineage(label.name, "", lineage).description


def _guess_rank(taxon: str) -> str:
    """Return the rank of a scientific name: by its words, by the shipped taxa, else a genus."""
    if " " in taxon:
        return "species"
    known = load_builtin_taxa()
    index = known.find(taxon)
    # Families of animals end so.
    rank = known.ranks[index] if index >= 0 else "family" if taxon.endswith("idae") else "genus"
    return rank if rank in ("class", "order", "family") else "genus"


class _Lines:
    """Text into a binary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode("utf-8"))


def _encode(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
