"""One table of verdicts about doubtful and broken values, which all readers of camera-trap formats obey.

Whatever the table does not name follows the published rules of a format: a value that they refuse stops the import.
Where a published validator lets something pass that contradicts itself (a file that occurs twice, NaN, boxes in
pixels), the table is stricter; where it refuses what has one clear meaning (an integer as confidence), milder: such
values are read, and counted.

Source: validate_batch_results, generate_md_results_from_predictions_json and integrity_check_json_db of
megadetector-utils 10.0.28; the table schemas and the profile of Camtrap DP 1.0.2, checked by frictionless 5.21.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from foveate.core.errors import UserError

Verdict = Literal["accept", "warn", "quarantine", "refuse"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
MEGADETECTOR, SPECIESNET, COCO, CAMTRAP_DP = "MegaDetector", "SpeciesNet", "COCO Camera Traps", "Camtrap DP"
_RESULTS = (MEGADETECTOR, SPECIESNET)
_JSON = (MEGADETECTOR, SPECIESNET, COCO)
_ALL = (MEGADETECTOR, SPECIESNET, COCO, CAMTRAP_DP)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Args:
        formats: whose readers obey it.
        field, value: what is doubtful, in the words of the format.
        verdict: "accept"; "warn": read, and counted; "quarantine": the row is left out, counted and named; "refuse":
            the file is not read.
        outcome: what is done with the value; the text under which it is counted.
    """

    formats: tuple[str, ...]
    field: str
    value: str
    verdict: Verdict
    outcome: str


RULES: Mapping[str, Rule] = {
    # Files and versions.
    "no-version": Rule(
        (MEGADETECTOR,), "info.format_version", "missing, or no version", "refuse", "no format is known"
    ),
    "number-as-version": Rule(
        (MEGADETECTOR,), "info.format_version", "a number", "warn", "format_version written as a number"
    ),
    "old-version": Rule((MEGADETECTOR,), "info.format_version", "below 1.3", "warn", "format_version older than 1.3"),
    "other-version": Rule(
        (MEGADETECTOR,), "info.format_version", "above 1.6", "warn", "format_version that this reader does not know"
    ),
    "new-without-version": Rule(
        (SPECIESNET,), "info", "missing, though boxes have classes", "warn", "files of the new layout without a version"
    ),
    "other-schema": Rule(
        (CAMTRAP_DP,), "resources", "the schema of another version", "warn", "read as far as it is understood"
    ),
    "one-path": Rule((CAMTRAP_DP,), "resources.path", "a list of one file", "accept", "the file is read"),
    "unused-metadata": Rule(
        (CAMTRAP_DP,),
        "contributors, created, spatial, ...",
        "wrong, in a field that reading does not use",
        "warn",
        "kept as it is; an export needs contributors",
    ),
    "metadata": Rule(
        (CAMTRAP_DP,), "project, taxonomic, ...", "against the profile", "refuse", "the package is invalid"
    ),
    # Paths.
    "no-path": Rule(_JSON, "file, filepath, file_name", "empty, or no text", "refuse", "no image is named"),
    "backslashes": Rule(_ALL, "file, filepath, file_name, filePath", "backslashes", "warn", "paths with backslashes"),
    "absolute-path": Rule(
        _RESULTS,
        "file, filepath",
        "absolute",
        "warn",
        "absolute paths (the drive or the leading slash was dropped)",
    ),
    "file-twice": Rule(_RESULTS, "file, filepath", "occurs twice", "refuse", "nobody can say which entry counts"),
    # What became of an image.
    "failure-and-detections": Rule(
        (MEGADETECTOR,), "failure", "beside a list of detections", "refuse", "they contradict each other"
    ),
    "no-detections": Rule((MEGADETECTOR,), "detections", "missing, without a failure", "refuse", "nothing is stated"),
    "not-processed": Rule(
        (MEGADETECTOR,),
        "detections",
        "null, beside a failure that is null",
        "quarantine",
        "images with neither detections nor a failure, left out",
    ),
    "corrupt": Rule((COCO,), "corrupt", "true", "quarantine", "images marked as corrupt, left out"),
    "empty-and-species": Rule(
        _ALL,
        "category, class, observationType",
        "empty, and a species of the same image",
        "warn",
        "images or events that are called empty and a species at once: see which is right",
    ),
    # Scores.
    "score": Rule(_RESULTS, "conf, score", "NaN, outside 0 to 1, or no number", "refuse", "the score means nothing"),
    "integer-score": Rule(_RESULTS, "conf, score", "an integer, 0 or 1", "warn", "confidences written as integers"),
    "unsorted": Rule(
        (MEGADETECTOR,), "classifications", "not sorted", "warn", "lists of classifications that were not sorted"
    ),
    "unsorted-positions": Rule(
        (SPECIESNET,), "scores", "not descending", "refuse", "classes belong to scores by position, which may be wrong"
    ),
    "lengths": Rule((SPECIESNET,), "scores", "another number than of classes", "refuse", "their pairs are unknown"),
    "no-classes": Rule(
        (SPECIESNET,),
        "raw_classifications, processed_classification",
        "null, or an empty list",
        "warn",
        "classifications without any class",
    ),
    "pair": Rule((MEGADETECTOR,), "classifications", "no list of [category, score]", "refuse", "no class is named"),
    "long-pair": Rule(
        (MEGADETECTOR,), "classifications", "more than two values", "warn", "values behind [category, score], ignored"
    ),
    # Boxes.
    "box": Rule(_RESULTS, "bbox", "not four finite numbers, or a negative size", "refuse", "there is no such box"),
    "box-in-pixels": Rule(_RESULTS, "bbox", "in pixels", "refuse", "the size of the image is not stated"),
    "clipped-box": Rule(_JSON, "bbox", "leaves the image", "warn", "boxes that left the image and were clipped"),
    "empty-box": Rule(
        _RESULTS, "bbox", "no area in the image", "warn", "boxes without any area in the image, left out"
    ),
    "unusable-box": Rule(
        (COCO,), "bbox", "no area, or not four numbers", "warn", "boxes without any area in the image, left out"
    ),
    "box-without-size": Rule(
        (COCO,),
        "bbox",
        "in pixels of an image without width and height",
        "warn",
        "boxes in pixels of images without width and height, left out",
    ),
    "box-beyond-image": Rule(
        (CAMTRAP_DP,), "bboxX, bboxY", "the box leaves the image", "warn", "kept as it is; no region is made of it"
    ),
    # Categories and classes.
    "category": Rule(_JSON, "category, category_id", "in no table of categories", "refuse", "its meaning is unknown"),
    "number-as-category": Rule(_RESULTS, "category", "a number", "warn", "categories written as numbers"),
    "fraction-as-category": Rule((COCO,), "category_id", "1.0", "warn", "categories written as fractions"),
    "empty-category": Rule(
        (MEGADETECTOR,), "category", "0 in no table, or named empty", "warn", "detections called empty, left out"
    ),
    "unnamed-category": Rule(
        (MEGADETECTOR,), "detection_categories, classification_categories", "a blank name", "refuse", "nothing is named"
    ),
    "text-as-category": Rule(
        (MEGADETECTOR,),
        "detection_categories, classification_categories",
        "ids that are no whole numbers",
        "warn",
        "categories whose ids are no whole numbers",
    ),
    "description": Rule(
        (MEGADETECTOR,),
        "classification_category_descriptions",
        "no texts",
        "warn",
        "descriptions that are no text, ignored",
    ),
    "label": Rule((SPECIESNET,), "prediction, class", "not seven fields", "refuse", "the taxon is unknown"),
    "two-labels": Rule(
        (SPECIESNET,), "label", "another than elsewhere of the category", "refuse", "nobody can say which is right"
    ),
    "category-name-twice": Rule(
        (COCO,), "categories", "a name that two ids have", "warn", "categories with the name of another one"
    ),
    "empty-category-name": Rule(
        (COCO,), "categories", "0, with another name than empty", "warn", "annotations of category 0 are empty"
    ),
    # Ids and references.
    "id": Rule((COCO,), "id, image_id", "missing, or neither text nor integer", "refuse", "rows cannot be told apart"),
    "integer-id": Rule((COCO,), "id, image_id", "an integer", "warn", "ids written as integers"),
    "id-twice": Rule((COCO, CAMTRAP_DP), "id, mediaID, ...", "not unique", "refuse", "nobody can say which row counts"),
    "reference": Rule(
        (COCO, CAMTRAP_DP), "image_id, deploymentID, mediaID", "of no row", "refuse", "the row is about nothing"
    ),
    # Places, times and bursts.
    "no-location": Rule(
        (COCO,), "location", "missing", "warn", "images without a location: their folder is their camera"
    ),
    "number-as-location": Rule((COCO,), "location", "a number", "warn", "locations written as numbers"),
    "sequence-name": Rule((COCO,), "sequence_id, sequence", "in place of seq_id", "warn", "bursts not named seq_id"),
    "time": Rule((COCO,), "datetime", "no time", "warn", "times that cannot be read: these images have no hour"),
    "no-offset": Rule((CAMTRAP_DP,), "times", "without an offset from UTC", "warn", "kept as written"),
    "fraction-of-second": Rule((CAMTRAP_DP,), "times", "with fractions of a second", "warn", "kept as written"),
    "no-time": Rule((CAMTRAP_DP,), "times", "no time", "refuse", "the package is invalid"),
    # Other cells.
    "annotation-missing": Rule(
        (COCO,), "annotations", "none of an image", "warn", "images without an annotation: unlabeled, not empty"
    ),
    "count": Rule((COCO,), "count", "no whole number from 1 on", "warn", "counts that are no whole number, left out"),
    "frame": Rule((COCO,), "frame_num", "no whole number from 0 on", "warn", "frame numbers that are none, left out"),
    "text-as-flag": Rule(
        (COCO,), "sequence_level_annotation, corrupt", "a text such as 'true'", "warn", "flags written as texts"
    ),
    "frame-rate": Rule(
        (MEGADETECTOR,), "frame_rate", "missing or negative, of a video", "refuse", "frames have no time"
    ),
    "frames": Rule((MEGADETECTOR,), "frames_processed", "missing, or no numbers", "refuse", "frames are unknown"),
    "frame-number": Rule(
        (MEGADETECTOR,),
        "frame_number",
        "missing, or no whole number from 0 on, of a video",
        "refuse",
        "no frame is named",
    ),
    "fraction-as-frame": Rule((MEGADETECTOR,), "frame_number", "30.0", "warn", "frame numbers written as fractions"),
    "integer-as-fraction": Rule((CAMTRAP_DP,), "count, ...", "1.0", "warn", "read as 1, as pandas writes gaps"),
    "cell": Rule((CAMTRAP_DP,), "any other", "against the table schema", "refuse", "the package is invalid"),
    "unknown-column": Rule(
        (CAMTRAP_DP,), "a column", "that the standard does not have", "warn", "stored, and not exported"
    ),
    "column-order": Rule(
        (CAMTRAP_DP,), "columns", "missing optional ones, or another order", "warn", "read by their names"
    ),
    "event-times": Rule(
        (CAMTRAP_DP,),
        "eventStart, eventEnd",
        "an end before the start, or outside the deployment",
        "warn",
        "kept as it is",
    ),
    "unnamed-animal": Rule((CAMTRAP_DP,), "scientificName", "empty, of an animal", "warn", "kept as it is"),
}
"""Verdicts by a short name; several readers share a row wherever the formats do."""


def verdicts_table(formats: Iterable[str]) -> str:
    """Return the rows about some formats as a Markdown table, those that are read first.

    >>> print(verdicts_table(["SpeciesNet"]).splitlines()[0])
    | format | field | value | verdict | what happens, or why |
    """
    formats = list(formats)
    rows = [rule for rule in RULES.values() if set(rule.formats) & set(formats)]
    rows.sort(key=lambda rule: VERDICTS.index(rule.verdict))
    lines = ["| format | field | value | verdict | what happens, or why |", "|---|---|---|---|---|"]
    for rule in rows:
        where = ", ".join(name for name in rule.formats if name in formats)
        fields = ", ".join(f"`{name}`" for name in rule.field.split(", "))
        lines.append(f"| {where} | {fields} | {rule.value} | {rule.verdict} | {rule.outcome} |")
    return "\n".join(lines) + "\n"


class LeftOutError(Exception):
    """A row of the file is left out, as its rule says; the reader goes on behind it."""


@dataclass(slots=True)
class Judge:
    """Obeys the table while a file is read: counts, leaves rows out, or refuses the file.

    Args:
        path: of the file, for messages.

    Attributes:
        counts: times that each outcome happened.
        named: records behind an outcome, by their names.
    """

    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def count(self, rule: str, times: int | bool = 1, *, name: str = "") -> None:
        """Count a value that is read nevertheless, under the outcome of its rule."""
        assert RULES[rule].verdict in ("warn", "quarantine"), f"{rule} is not read"
        self.counts[RULES[rule].outcome] += times
        if name and times:
            self.named.setdefault(RULES[rule].outcome, []).append(name)

    def reject(self, rule: str, where: str, problem: str, *, name: str = "") -> UserError | LeftOutError:
        """Return the error to raise: one that ends the reading, or one that leaves the row out, which is counted."""
        if RULES[rule].verdict == "quarantine":
            self.count(rule, name=name or where)
            return LeftOutError(where)
        assert RULES[rule].verdict == "refuse", f"{rule} does not end anything"
        return UserError(f"{self.path}: {where}: {problem}")


def format_names(named: Mapping[str, list[str]], *, max_names: int = 5) -> list[str]:
    """Return a sentence for each outcome that names its records, the first ones.

    >>> format_names({"images marked as corrupt, left out": ["a.jpg", "b.jpg", "c.jpg"]}, max_names=2)
    ['images marked as corrupt, left out: a.jpg, b.jpg and 1 more']
    """
    lines = []
    for outcome, names in named.items():
        more = f" and {len(names) - max_names:,} more" if len(names) > max_names else ""
        lines.append(f"{outcome}: {', '.join(names[:max_names])}{more}")
    return lines
