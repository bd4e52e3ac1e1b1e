"""Add results of MegaDetector or SpeciesNet to the images of a survey.

Results files have no images of their own, so they are no import format: `foveate collect --results` adds them. Boxes
and classes become machine observations, which are no labels unless a training asks for them, and regions, marked as a
detector's. Rows of people are never touched.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.files import sha256_file
from foveate.records.annotate import PartWriter, Row, remove_rows, write_results
from foveate.records.appender import AnnotationAppender, read_parts
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.importers.files import read_annotations
from foveate.records.record import Region
from foveate.records.region_sources import detector_source
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.survey.detections import ClassLabel, DetectedImage, DetectionResults, ScoredLabel, classify_boxes, get_kind
from foveate.survey.file_index import FileIndex, is_video
from foveate.survey.importers.result_files import parse_predictions, parse_results
from foveate.survey.store import EMPTY_AND_SPECIES
from foveate.survey.types import Observation, ObservationKind, observation_row
from foveate.survey.verdicts import format_names
from foveate.survey.videos import find_video, split_video

_IMAGES_PER_PART = 5_000  # some 100 MB of rows in memory


def read_results(path: str | Path) -> DetectionResults:
    """Read a results file of MegaDetector or SpeciesNet, recognized by its fields.

    Raises:
        UserError: the file is neither, or a record contradicts itself; the error names record and field.

    Example:
        >>> image = DetectedImage("0001.jpg", (Detection("animal", 0.93, Box(0.1, 0.2, 0.5, 0.6)),))
        >>> file = export_megadetector(new_folder / "results.json", [image], ResultsInfo(detector="nanodet")).path
        >>> results = read_results(file)
        >>> results.detector, results.images[0].detections[0].category
        ('nanodet', 'animal')
    """
    path = Path(path)
    content = read_annotations(path, _share_labels)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with 'images' or 'predictions' (got {type(content).__name__})")
    if "predictions" in content:
        return parse_predictions(content, path)
    if "images" in content and "annotations" in content:
        raise UserError(f"{path}: has annotations, no detections; expected it as SOURCE, not as --results")
    if "images" not in content:
        hint = nearest("predictions", map(str, content)) or nearest("images", map(str, content))
        raise UserError(f"{path}: has neither 'images' (MegaDetector) nor 'predictions' (SpeciesNet){hint}")
    return parse_results(content, path)


def _share_labels(entry: dict[str, Any]) -> dict[str, Any]:
    """Keep one copy of each label: the file repeats them for every image, and they are most of its text."""
    for name in ("prediction", "class", "label"):
        if type(entry.get(name)) is str:
            entry[name] = sys.intern(entry[name])
    if type(classes := entry.get("classes")) is list:
        entry["classes"] = [sys.intern(label) if type(label) is str else label for label in classes]
    if type(pairs := entry.get("classifications")) is list:
        for pair in pairs:
            if type(pair) is list and pair and type(pair[0]) is str:
                pair[0] = sys.intern(pair[0])
    return entry


@dataclass(slots=True)
class ResultsSummary:
    """Counts of `add_results`.

    Args:
        images: of the survey that got results.
        detections: boxes that were added.
        failures: images that the tool could not process.
        missing: files of the results that are not in the survey; videos are counted separately.
        ambiguous: files that fit several images, or an image that several files fit.
        without_results: images of the survey of which the file says nothing.
        contradictions: images that the file calls empty and a species at once, also among `repairs`.
        named: outcome of `repairs` -> images that were left out or contradict themselves.
    """

    format: str
    model: str
    images: int = 0
    detections: int = 0
    failures: int = 0
    missing: int = 0
    videos: int = 0
    ambiguous: int = 0
    without_results: int = 0
    contradictions: int = 0
    repairs: Mapping[str, int] | None = None
    named: Mapping[str, list[str]] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return all counts as JSON values."""
        counts = {name: getattr(self, name) for name in self.__slots__ if name not in ("repairs", "named")}
        return {**counts, "repairs": dict(self.repairs or {}), "named": dict(self.named or {})}

    def lines(self) -> list[str]:
        """Format the counts for people, without zeros."""
        rows = [
            (self.detections, "boxes added"),
            (self.failures, "images that the tool could not process"),
            (self.missing, "files of the results are not in the survey"),
            (self.videos, "videos of the results left out"),
            (self.ambiguous, "files of the results left out: they fit several images, or share one"),
            (self.without_results, "images of the survey are not in the results"),
            *((count, f"doubtful: {what}") for what, count in (self.repairs or {}).items()),
        ]
        first = f"results: {self.format}, {self.images:,} images ({self.model or 'model not stated'})"
        names = [f"  {line}" for line in format_names(self.named or {})]
        return [first, *(f"  {count:,} {what}" for count, what in rows if count), *names]


def add_results(collection: str | Path, path: str | Path, results: DetectionResults | None = None) -> ResultsSummary:
    """Add the results of a file to the images of a survey as machine observations and regions.

    Results of the same detector replace its earlier ones of these images; the same file again changes nothing.

    Args:
        results: of `read_results(path)`, if they were read before.

    Raises:
        UserError: the file cannot be used, the collection is no survey, or none of its images is in the file.

    Example:
        >>> detection = Detection("animal", 0.93, Box(0.1, 0.2, 0.5, 0.6))
        >>> images = [DetectedImage(f"{number:03}", (detection,)) for number in range(64)]
        >>> file = export_megadetector(new_folder / "results.json", images, ResultsInfo(detector="nanodet")).path
        >>> add_results(survey_copy, file).detections
        64
    """
    collection, path = Path(collection), Path(path)
    results = results or read_results(path)
    files, keys, deployments, numbers = _read_media(collection)
    rows, ambiguous = FileIndex(files, keys).find_all([image.file for image in results.images])
    matched = [(row, image) for row, image in zip(rows, results.images, strict=True) if row >= 0]
    matched = _split_videos(matched, keys, numbers)
    # Results of another survey would add nothing and look like a success.
    if not matched:
        example = results.images[0].file if results.images else ""
        raise UserError(f"{path}: none of its {len(rows)} files is in {collection} (got {example!r}); {files[:1]} is")
    model = results.detector or results.classifier
    unmatched = [image for row, image in zip(rows, results.images, strict=True) if row < 0]
    # A path that fits several images has the row -1 as well: it counts as ambiguous, not as missing.
    left_out = set(ambiguous)
    missing = [image.file for image in unmatched if image.file not in left_out]
    videos = sum(map(is_video, missing))
    summary = ResultsSummary(
        format=results.format,
        model=model,
        images=len(matched),
        detections=sum(len(image.detections) for _, image in matched),
        failures=sum(bool(image.failure) for _, image in matched),
        missing=len(missing) - videos,
        videos=videos,
        ambiguous=len(ambiguous),
        without_results=len(keys) - len(matched),
        contradictions=results.repairs[EMPTY_AND_SPECIES],
        repairs=+results.repairs,
        named=results.named,
    )
    # Identify results by content: an equal file adds nothing, a different one of this detector replaces the first.
    digest = sha256_file(path)[:16]
    provenance = Provenance(source=path.name, model=model, recipe_hash=digest)
    # Removed first: a run killed after this leaves images without results, never with those of two files.
    _remove_earlier(collection, {keys[row] for row, _ in matched}, provenance)

    def split_rows(batch: Sequence[tuple[int, DetectedImage]]) -> dict[str, list[Row]]:
        regions, observations = [], []
        for row, image in batch:
            regions += [{**entry, "source": detector_source(model)} for entry in _make_regions(keys[row], image)]
            observed = make_observations(keys[row], deployments[row], image, results)
            observations += map(observation_row, observed)
        return {"regions": regions, "observations": observations}

    with AnnotationAppender(collection, purpose=f"adding {path.name}") as appender:
        writer = PartWriter[tuple[int, DetectedImage]](
            # Parts are cut by number, not by time: unlike a model's results, a file's survive a crash.
            appender,
            provenance,
            split_rows,
            max_results=_IMAGES_PER_PART,
            max_seconds=float("inf"),
        )
        write_results(matched, writer)
    return summary


def _split_videos(
    matched: Sequence[tuple[int, DetectedImage]], keys: Sequence[str], numbers: Sequence[int]
) -> list[tuple[int, DetectedImage]]:
    """Replace the results of each video by those of its frames in the survey."""
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if video := find_video(key):
            rows_of.setdefault(video, []).append(row)
    split: list[tuple[int, DetectedImage]] = []
    for row, image in matched:
        rows = rows_of.get(find_video(keys[row]))
        if rows is None:
            split.append((row, image))
        else:
            split += zip(rows, split_video(image, [numbers[each] for each in rows]), strict=True)
    return split


def _read_media(collection: Path) -> tuple[list[str], list[str], list[str], list[int]]:
    """Return file, key, deployment and frame number of each image of a survey; the last row of an image holds."""
    with Collection.open(collection) as opened:
        present = set(opened.keys)
    media: dict[str, tuple[str, str, int]] = {}
    names = ["key", "file", "deployment", "frame_number"]
    for part in read_parts(collection, "media", names):
        columns = (part[name].to_pylist() for name in names)
        media |= {key: (file, name, number) for key, file, name, number in zip(*columns, strict=True) if key in present}
    if not media:
        raise UserError(f"{collection} is no camera-trap survey: its images have no deployments (table 'media')")
    files, deployments, numbers = (list(column) for column in zip(*media.values(), strict=True))
    return files, list(media), deployments, numbers


def _remove_earlier(collection: Path, keys: set[str], provenance: Provenance) -> None:
    """Remove rows of another file of the same detector; only rows of machines have its model."""

    def select(part: pa.Table) -> NDArray[np.bool_]:
        names = ("key", "model", "recipe_hash")
        rows = zip(*(part[name].to_pylist() for name in names), strict=True)
        return np.array(
            [
                model == provenance.model and bool(digest) and digest != provenance.recipe_hash and key in keys
                for key, model, digest in rows
            ],
            dtype=bool,
        )

    for table in ("regions", "observations"):
        remove_rows(collection, table, select, purpose="replacing results")


def _make_regions(key: str, image: DetectedImage) -> Iterator[Row]:
    for detection, best in classify_boxes(image):
        label = best[0].taxon or best[0].name if best else detection.category
        phrase = best[0].name if best else detection.category
        yield region_row(key, Region(detection.box, phrase, detection.confidence, label))


def make_observations(key: str, deployment: str, image: DetectedImage, results: DetectionResults) -> list[Observation]:
    """Return the machine observations of one image: one for each box, or else one for the whole image."""

    def observe(
        kind: ObservationKind,
        best: ScoredLabel | None = None,
        *,
        taxon: str = "",
        score: float | None = None,
        box: Box | None = None,
        extra: dict[str, str] | None = None,
    ) -> Observation:
        # A file may have classes without naming a classifier; then the detector's name is used for both.
        label, by_detector = best[0] if best else ClassLabel(""), best is None or not results.classifier
        name = f"{key}|{results.detector or results.classifier}|{len(observations)}"
        return Observation(
            # The same id in a later file of this model, so that its row replaces this one (see `select_current`).
            id=hashlib.blake2b(name.encode(), digest_size=8).hexdigest(),
            deployment=deployment,
            key=key,
            kind=kind,
            taxon=label.taxon or taxon,
            taxon_id=label.taxon_id if label.taxon else "",
            box=box,
            method="machine",
            classifier=results.detector if by_detector else results.classifier,
            classified_at=results.detected_at if by_detector else results.classified_at,
            probability=best[1] if best else score,
            extra=extra or {},
        )

    observations: list[Observation] = []
    if image.failure:
        return [observe("unclassified", extra={"failure": image.failure})]
    classified = list(classify_boxes(image))
    prediction = image.prediction
    decision = {"decision": prediction.source} if prediction is not None and prediction.source else {}
    is_own = prediction is not None and not any(best and best[0] == prediction.label for _, best in classified)
    # A species is never lost, and a class without a box is a row of its own where no box has one.
    is_row = is_own and (prediction.label.is_species or not any(best for _, best in classified))
    for detection, best in classified:
        kind, category = get_kind(detection.category), detection.category
        extra = {"category": category, "detection_confidence": repr(detection.confidence)}
        if classes := detection.raw_classifications or detection.classifications or image.raw_prediction:
            extra["classifications"] = _format_classes(classes)
        if prediction is not None and is_own and not is_row:
            # What is said of the image, such as that it is empty, beside a box of something else.
            extra |= {"image_class": _format_classes([(prediction.label, prediction.score)]), **decision}
        # A detector of one's species has their names as categories.
        taxon = category if kind == "animal" and category != "animal" else ""
        # If category and class differ, the class wins, such as for a person in a box of the category animal.
        kind = best[0].kind if best else kind
        observations.append(
            observe(kind, best, taxon=taxon, score=detection.confidence, box=detection.box, extra=extra)
        )
    if prediction is not None and is_row:
        extra = dict(decision)
        if image.raw_prediction:
            extra["classifications"] = _format_classes(image.raw_prediction)
        observations.append(observe(prediction.label.kind, (prediction.label, prediction.score), extra=extra))
    # A processed image without findings is empty by the tool's account.
    return observations or [observe("blank")]


def _format_classes(scored: Sequence[ScoredLabel]) -> str:
    return json.dumps([[label.name, label.description, score] for label, score in scored], ensure_ascii=False)
