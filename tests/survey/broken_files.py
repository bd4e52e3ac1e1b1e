"""Files with one value changed for each rule of `foveate.survey.verdicts`, and what the public validators say."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from made_surveys import FORMATS, copy_package

from foveate.survey.verdicts import CAMTRAP_DP, COCO, MEGADETECTOR, SPECIESNET

FILES = {MEGADETECTOR: "megadetector_1.6.json", SPECIESNET: "speciesnet_new.json", COCO: "cct.json"}
MISSING: Any = ...


@dataclass(frozen=True)
class Case:
    """One change of a valid file.

    Args:
        path: of the value, such as "images/0/file"; in a package "TABLE.csv/COLUMN" of the first row, or
            "datapackage.json/FIELD".
        public: whether the public validator takes the file.
    """

    rule: str
    format: str
    path: str
    value: Any
    public: bool

    def __str__(self) -> str:
        return f"{self.rule}-{self.path.rsplit('/', 1)[-1]}-{'missing' if self.value is MISSING else self.value!r:.30}"


_BOX, _FRAME = "images/0/detections/0", "images/5"
_SN = "predictions/0/detections/0"
_NAN = float("nan")
_FOX = {"category": "0", "conf": 0.9, "classifications": [["0", 0.8]]}
_EMPTY_FOX = {
    "filepath": "images/dep-A/IMG_0000.JPG",
    "detections": [
        {
            "category": "1",
            "label": "animal",
            "conf": 0.9,
            "bbox": [0.1, 0.1, 0.2, 0.2],
            "processed_classification": {
                "class": "t044;mammalia;carnivora;canidae;vulpes;vulpes;red fox",
                "score": 0.9,
                "source": "classifier",
            },
        }
    ],
    "prediction": "f185;;;;;;blank",
    "prediction_score": 0.9,
}
_OBSERVATIONS, _DESCRIPTOR = "observations.csv", "datapackage.json"
_SCHEMA = "https://raw.githubusercontent.com/tdwg/camtrap-dp/{}/deployments-table-schema.json"


def _cases(format: str, *rows: tuple[str, str, Any, bool]) -> list[Case]:
    return [Case(rule, format, path, value, public) for rule, path, value, public in rows]


CASES = [
    *_cases(
        MEGADETECTOR,
        ("no-version", "info/format_version", MISSING, False),
        ("no-version", "info/format_version", "v1.6", False),
        ("number-as-version", "info/format_version", 1.6, False),
        ("old-version", "info/format_version", "1.0", False),
        ("other-version", "info/format_version", "1.7", True),
        ("no-path", "images/0/file", "", True),
        ("no-path", "images/0/file", MISSING, False),
        ("backslashes", "images/0/file", "dep-A\\IMG_0000.JPG", True),
        ("absolute-path", "images/0/file", "C:/dep-A/IMG_0000.JPG", True),
        ("file-twice", "images/1/file", "dep-A/IMG_0000.JPG", True),
        ("failure-and-detections", "images/0/failure", "cut", False),
        ("no-detections", "images/0/detections", MISSING, False),
        ("no-detections", "images/0/detections", None, False),
        ("not-processed", "images/4/failure", None, True),
        ("empty-and-species", "images/0/detections/1", _FOX, False),
        ("score", f"{_BOX}/conf", _NAN, True),
        ("score", f"{_BOX}/conf", 1.2, True),
        ("score", f"{_BOX}/conf", "0.9", False),
        ("score", f"{_BOX}/conf", MISSING, False),
        ("score", f"{_BOX}/classifications", [["0", _NAN]], True),
        ("integer-score", f"{_BOX}/conf", 1, False),
        ("unsorted", f"{_BOX}/classifications", [["2", 0.1], ["0", 0.9]], True),
        ("pair", f"{_BOX}/classifications", [["0"]], False),
        ("pair", f"{_BOX}/classifications", {}, True),
        ("long-pair", f"{_BOX}/classifications", [["0", 0.5, 0.4]], True),
        ("box", f"{_BOX}/bbox", [0.1, _NAN, 0.2, 0.1], True),
        ("box", f"{_BOX}/bbox", [0.1, 0.1, -0.2, 0.1], True),
        ("box", f"{_BOX}/bbox", MISSING, False),
        ("box-in-pixels", f"{_BOX}/bbox", [10, 10, 50, 60], True),
        ("clipped-box", f"{_BOX}/bbox", [-0.1, 0.1, 0.2, 0.1], True),
        ("empty-box", f"{_BOX}/bbox", [0.1, 0.1, 0.0, 0.1], True),
        ("category", f"{_BOX}/category", "9", False),
        ("category", f"{_BOX}/classifications", [["7", 0.9]], False),
        ("number-as-category", f"{_BOX}/category", 1, False),
        ("empty-category", "images/0/detections/1/category", "0", False),
        ("unnamed-category", "detection_categories/1", " ", False),
        ("unnamed-category", "classification_categories/0", "", False),
        ("text-as-category", "detection_categories/x", "snow", False),
        ("text-as-category", "classification_categories/fox", "x", False),
        ("description", "classification_category_descriptions", [], True),
        ("description", "classification_category_descriptions/0", None, True),
        ("frame-rate", f"{_FRAME}/frame_rate", MISSING, False),
        ("frame-rate", f"{_FRAME}/frame_rate", -1, False),
        ("frames", f"{_FRAME}/frames_processed", MISSING, False),
        ("frames", f"{_FRAME}/frames_processed", [0, 1.5], True),
        ("frame-number", f"{_FRAME}/detections/0/frame_number", MISSING, False),
        ("frame-number", f"{_FRAME}/detections/0/frame_number", -1, True),
        ("fraction-as-frame", f"{_FRAME}/detections/0/frame_number", 30.0, True),
    ),
    *_cases(
        SPECIESNET,
        ("new-without-version", "info", MISSING, False),
        ("no-path", "predictions/0/filepath", "", True),
        ("backslashes", "predictions/0/filepath", "images\\dep-A\\IMG_0000.JPG", True),
        ("absolute-path", "predictions/0/filepath", "/images/dep-A/IMG_0000.JPG", True),
        ("file-twice", "predictions/1/filepath", "images/dep-A/IMG_0000.JPG", True),
        ("empty-and-species", "predictions/0", _EMPTY_FOX, True),
        ("score", f"{_SN}/conf", 1.4, True),
        ("score", f"{_SN}/processed_classification/score", 1.5, True),
        ("integer-score", f"{_SN}/conf", 1, False),
        ("unsorted-positions", f"{_SN}/raw_classifications/scores", [0.1, 0.9], False),
        ("lengths", f"{_SN}/raw_classifications/scores", [0.9], False),
        ("no-classes", f"{_SN}/raw_classifications", {"classes": [], "scores": []}, False),
        ("no-classes", f"{_SN}/processed_classification", None, False),
        ("box", f"{_SN}/bbox", [0.1, 0.1, -0.2, 0.2], True),
        ("box-in-pixels", f"{_SN}/bbox", [10, 10, 50, 60], True),
        ("clipped-box", f"{_SN}/bbox", [0.9, 0.1, 0.2, 0.2], True),
        ("empty-box", f"{_SN}/bbox", [0.9, 0.1, 0.0, 0.2], True),
        ("category", f"{_SN}/category", MISSING, False),
        ("number-as-category", f"{_SN}/category", 1, False),
        ("label", f"{_SN}/processed_classification/class", "a;b;c;d;e;f", False),
        ("two-labels", f"{_SN}/label", "human", False),
        ("two-labels", f"{_SN}/category", "0", False),
    ),
    *_cases(
        COCO,
        ("no-path", "images/0/file_name", "", True),
        ("no-path", "images/0/file_name", MISSING, False),
        ("backslashes", "images/0/file_name", "dep-A\\IMG_0000.JPG", True),
        ("corrupt", "images/0/corrupt", True, True),
        ("empty-and-species", "annotations/4", {"id": "a4", "image_id": "dep-B/IMG_0004", "category_id": 0}, True),
        ("clipped-box", "annotations/0/bbox", [-5.0, 20.0, 30.0, 40.0], True),
        ("unusable-box", "annotations/0/bbox", [1.0, 2.0, -3.0, 4.0], False),
        ("unusable-box", "annotations/0/bbox", [1.0, 2.0, 3.0], False),
        ("box-without-size", "images/0/width", MISSING, False),
        ("category", "annotations/0/category_id", 99, False),
        ("category", "categories/1/id", "1", False),
        ("fraction-as-category", "annotations/0/category_id", 1.0, False),
        ("category-name-twice", "categories/1/name", "meles meles", False),
        ("empty-category-name", "categories/0/name", "puma concolor", True),
        ("id", "images/0/id", MISSING, False),
        ("integer-id", "annotations/0/id", 5, False),
        ("id-twice", "images/1/id", "dep-A/IMG_0000", False),
        ("reference", "annotations/0/image_id", "nope", False),
        ("no-location", "images/0/location", MISSING, False),
        ("number-as-location", "images/0/location", 5, False),
        ("sequence-name", "images/0/sequence_id", "s", False),
        ("time", "images/0/datetime", "2023-13-03 05:00:00", True),
        ("annotation-missing", "annotations/0", {"id": "b", "image_id": "dep-B/IMG_0004", "category_id": 2}, True),
        ("count", "annotations/0/count", "2", True),
        ("count", "annotations/0/count", 0, True),
        ("frame", "images/0/frame_num", "0", True),
        ("text-as-flag", "annotations/0/sequence_level_annotation", "true", True),
    ),
    *_cases(
        CAMTRAP_DP,
        ("other-schema", f"{_DESCRIPTOR}/resources/0/schema", _SCHEMA.format("1.0.1"), False),
        ("one-path", f"{_DESCRIPTOR}/resources/0/path", ["deployments.csv"], True),
        ("unused-metadata", f"{_DESCRIPTOR}/created", "yesterday", False),
        ("unused-metadata", f"{_DESCRIPTOR}/version", 5, False),
        ("unused-metadata", f"{_DESCRIPTOR}/contributors", [], True),
        ("unused-metadata", f"{_DESCRIPTOR}/contributors/0/email", "x", False),
        ("unused-metadata", f"{_DESCRIPTOR}/spatial", {"type": "Polygon"}, False),
        ("unused-metadata", f"{_DESCRIPTOR}/keywords", "x", False),
        ("unused-metadata", f"{_DESCRIPTOR}/references", "x", False),
        ("unused-metadata", f"{_DESCRIPTOR}/bibliographicCitation", 5, False),
        ("unused-metadata", f"{_DESCRIPTOR}/relatedIdentifiers", [{"relationType": "x"}], False),
        ("metadata", f"{_DESCRIPTOR}/project", MISSING, False),
        ("metadata", f"{_DESCRIPTOR}/project/individualAnimals", "no", False),
        ("metadata", f"{_DESCRIPTOR}/project/captureMethod", ["timeLapse", "timeLapse"], False),
        ("metadata", f"{_DESCRIPTOR}/project/id", 5, False),
        ("metadata", f"{_DESCRIPTOR}/taxonomic/0/kingdom", 5, False),
        ("metadata", f"{_DESCRIPTOR}/coordinatePrecision", True, False),
        ("backslashes", "media.csv/filePath", "media\\dep-A\\IMG_0000.JPG", True),
        ("empty-and-species", f"{_OBSERVATIONS}/observationType", "blank", True),
        ("box-beyond-image", f"{_OBSERVATIONS}/bboxX", "0.9", True),
        ("id-twice", "media.csv/mediaID", "m01", False),
        ("reference", "media.csv/deploymentID", "nope", False),
        ("no-offset", "media.csv/timestamp", "2023-05-03T05:44:19", False),
        ("fraction-of-second", "deployments.csv/deploymentStart", "2023-05-01T00:00:00.5Z", False),
        ("no-time", "media.csv/timestamp", "noon", False),
        ("integer-as-fraction", f"{_OBSERVATIONS}/count", "1.0", False),
        ("cell", "deployments.csv/latitude", "95", False),
        ("cell", "deployments.csv/deploymentID", "", False),
        ("cell", f"{_OBSERVATIONS}/classificationProbability", "1.2", False),
        ("unknown-column", "media.csv/+hello", "x", False),
        ("column-order", "media.csv/-favorite", "", False),
        ("column-order", "media.csv/<", "", False),
        ("event-times", f"{_OBSERVATIONS}/eventEnd", "2020-01-01T00:00:00Z", True),
        ("unnamed-animal", f"{_OBSERVATIONS}/scientificName", "", True),
    ),
]


def write_case(case: Case, folder: Path) -> Path:
    """Write the changed file, or package, into an empty folder; return its path."""
    if case.format == CAMTRAP_DP:
        package = copy_package(folder / "package")
        name, _, path = case.path.partition("/")
        _change_cells(package / name, path, case.value) if name.endswith(".csv") else _change(
            package / name, path, case
        )
        return package
    target = folder / "file.json"
    target.write_text((FORMATS / FILES[case.format]).read_text(), encoding="utf-8")
    _change(target, case.path, case)
    return target


def _change(file: Path, path: str, case: Case) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    *above, last = path.split("/")
    target = content
    for part in above:
        target = target[int(part)] if isinstance(target, list) else target[part]
    key = int(last) if isinstance(target, list) else last
    if case.value is MISSING:
        del target[key]
    else:
        target[key] = case.value
    file.write_text(json.dumps(content), encoding="utf-8")


def _change_cells(file: Path, column: str, value: str) -> None:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = list(rows[0])
    if column == "<":
        names[:2] = names[1::-1]
    elif column[0] == "-":
        names.remove(column[1:])
    else:
        names += [column[1:]] if column[0] == "+" else []
        rows[0][column.removeprefix("+")] = value
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, names, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
