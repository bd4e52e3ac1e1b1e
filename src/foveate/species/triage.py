"""Triage cards on day one: blank, animal, human or vehicle, without a model of one's own.

MegaDetector's results decide where they are there; else the shipped detector does, whose boxes are scored by how much
their crops look like animals (`foveate.species.boxes`). The results folder is one of `foveate species predict`, whose
model knows nothing but kinds, so that `review` and `export` read it. A killed run goes on, for boxes are stored.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, write_bytes_atomically
from foveate.core.progress import say
from foveate.core.recipes import validate
from foveate.core.tables import csv_rows
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.labeling import find_failure
from foveate.records.region_sources import DETECTED
from foveate.species.boxes import DECODE_ERROR, NOTICE, SOURCE, BoxesResult, add_boxes
from foveate.species.crops import choose_box
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.predict import prepare_collection, write_tables
from foveate.species.predictions import (
    BOXES,
    DECISIONS,
    SURVEY,
    TRIAGE,
    Predictions,
    ScorePart,
    check_folder,
    write_classes,
    write_config,
    write_part,
)
from foveate.species.settings import BoxSettings, PredictSettings, TriageSettings
from foveate.species.stages.species_list import ANIMAL
from foveate.species.taxonomy import Classes
from foveate.survey.detections import get_kind
from foveate.survey.store import name_detectors
from foveate.survey.taxa import Taxa
from foveate.survey.videos import find_video

TABLE, BLURRED = "triage.csv", "blurred"
# The order of the table: what is looked at first, and what is to be deleted last.
KINDS = ("animal", "human", "vehicle", "unknown", "unclassified", "blank")
THRESHOLDS = {"MegaDetector": 0.2, "NanoDet-g": 0.34}
"""Score from which a box counts: MegaDetector's typical one; of the shipped detector, see `MEASURED`."""
MEASURED = (
    "at 0.34, on real frames beside those that chose the threshold: 35 of 40 with an animal were found, 3 of 16 "
    "without one were called animals"
)
"""Error of the shipped detector at its threshold, by `python -m benchmarks.species_triage`."""
_IMAGES_PER_PART = 256
_LABELS = (ANIMAL, "blank", "human", "vehicle")
_BLUR_MARGIN = 0.1  # of a box's longer side: hair and hands lie outside of boxes
_BLUR_BLOCKS = 8  # pixels that are left of a person's longer side: no face can be known again
_NOT_IN_FILE = "not_in_results: the detector's results do not have this image; run again without results for these"


@dataclass(frozen=True, slots=True)
class TriageResult:
    """Counts of a triage.

    Attributes:
        images: photos, and files that cannot be read. videos: with readable frames.
        kinds: kind -> images and videos, those of `KINDS` that occur; a video has each of its kinds.
        detector: "MegaDetector" or "NanoDet-g". threshold: score from which a box counted.
        blurred: copies with blurred people that were written.
        failed: images that cannot be read, or that the detector's results do not have.
        unreachable: of those, images that could not be reached; the same call tries them again.
        stopped: by a signal; the same call resumes.
    """

    images: int
    kinds: dict[str, int]
    detector: str
    threshold: float
    blurred: int
    failed: int
    seconds: float
    stopped: bool = False
    unreachable: int = 0
    first_error: str = ""
    videos: int = 0

    def find_failure(self) -> UserError | None:
        """Return the error that the command ends with: no image could be read, or some could not be reached."""
        return find_failure(
            self.images + self.videos,
            succeeded=self.failed < self.images + self.videos,
            failed={"unclassified": self.failed},
            unreachable=self.unreachable,
            first_error=self.first_error,
            stopped=self.stopped,
        )


def triage(
    source: Path, folder: Path, settings: TriageSettings, *, device: str | None = None, workers: int | None = None
) -> TriageResult:
    """Write the kind of each image of a source into a results folder; the same call again resumes.

    Args:
        source: a collection, or what `foveate collect` reads, such as a folder of cards.
        workers: threads that decode images; by default one a core.

    Raises:
        UserError: the source has no images, or the folder holds results of another source or detector.
    """
    start = time.monotonic()
    check_folder(folder)
    with FolderLock(folder, purpose="triaging images"):
        inputs = PredictSettings(deployments=settings.deployments, results=settings.results)
        path, uncollected = prepare_collection(source, folder, inputs, workers=workers)
        with Collection.open(path) as collection:
            if not collection.keys:
                raise UserError(f"{source}: no image to triage; see foveate inspect {path}")
            is_judged = any(name_detectors(collection.table("observations"), collection.keys))
        detector = "MegaDetector" if is_judged else "NanoDet-g"
        threshold = THRESHOLDS[detector] if settings.threshold is None else settings.threshold
        proposed = None
        if not is_judged:
            say(NOTICE)
            # Every image: boxes that a person drew say nothing about people and empty frames.
            proposed = add_boxes(path, BoxSettings(every_image=True), device=device, workers=workers)
            if proposed.stopped:
                seconds = round(time.monotonic() - start, 2)
                return TriageResult(proposed.images, {}, detector, threshold, 0, 0, seconds, stopped=True)
        with Collection.open(path) as collection:
            _write_results(collection, path, folder, detector, threshold, proposed)
        predictions = Predictions.open(folder)
        decisions = _decide(predictions, threshold)
        write_table(predictions, decisions, folder / TABLE, threshold=threshold)
        blurred = blur_people(predictions, folder / BLURRED, threshold=threshold) if settings.blur_people else 0
    failures = predictions.images.filter(pa.array(np.array(predictions.images["failure"].to_pylist()) != ""))
    reasons = failures["failure"].to_pylist()
    counts = Counter(decisions["kind"].to_pylist())
    counts["unclassified"] += len(predictions.images) - len(predictions.collection_keys)
    videos = Counter(map(find_video, predictions.collection_keys))
    num_frames = videos.total() - videos.pop("", 0)
    return TriageResult(
        images=len(predictions.images) - num_frames,
        videos=len(videos),
        kinds={kind: counts[kind] for kind in KINDS if counts[kind]},
        detector=detector,
        threshold=threshold,
        blurred=blurred,
        failed=len(reasons),
        seconds=round(time.monotonic() - start, 2),
        unreachable=len(uncollected) + (proposed.unreachable if proposed else 0),
        first_error=next(iter([*uncollected, *([proposed.first_error] if proposed else []), *reasons]), ""),
    )


def describe(result: TriageResult) -> list[str]:
    """Return sentences about a triage, with the measured error of what decided."""
    counts = ", ".join(f"{kind} {number:,}" for kind, number in result.kinds.items())
    measured = f"; {MEASURED}" if result.detector == "NanoDet-g" else ""
    videos = f" and {result.videos:,} videos" if result.videos else ""
    lines = [
        f"{result.images:,} images{videos}: {counts}",
        f"{result.detector}, boxes from {result.threshold:g} on{measured}",
    ]
    lines += [f"{result.blurred:,} copies with blurred people"] if result.blurred else []
    lines += [f"{result.failed:,} images were not decided; the table says why"] if result.failed else []
    return lines


def _select_own(collection: Collection, detector: str) -> NDArray[np.bool_]:
    """Return which regions [B] are boxes of the detector that decides, and not of another or drawn by a person."""
    sources = collection.grouped("regions").table["source"].to_pylist()
    if detector == "NanoDet-g":
        return np.array([source == SOURCE for source in sources], dtype=bool)
    return np.array([source.startswith(DETECTED) and source != SOURCE for source in sources], dtype=bool)


class _BestBoxes:
    """The best box of each image that counts, whatever it shows; `write_tables` marks it as the one that was used."""

    def __init__(self, collection: Collection, own_B: NDArray[np.bool_], threshold: float) -> None:
        regions, corners = collection.grouped("regions"), collection.region_boxes
        scores_B = regions.array("score").astype(np.float64)
        self._boxes: dict[int, NDArray[np.float64]] = {}
        for row in range(len(collection.keys)):
            first, last = regions.bounds(row)
            own = np.arange(first, last)[own_B[first:last]]
            if len(own) and (box := choose_box(corners[own], scores_B[own], min_score=threshold)) is not None:
                self._boxes[row] = box

    def box(self, row: int) -> NDArray[np.float64] | None:
        return self._boxes.get(row)

    def further_boxes(self, row: int) -> tuple[NDArray[np.float64], ...]:
        return ()


def _write_results(
    collection: Collection,
    path: Path,
    folder: Path,
    detector: str,
    threshold: float,
    proposed: BoxesResult | None,
) -> None:
    """Write the files of a results folder that `predict` would write of a model of kinds."""
    rows_N = np.arange(len(collection.keys))
    detectors = name_detectors(collection.table("observations"), collection.keys)
    failures = {}
    if proposed is not None:
        failures = _find_failures(collection, proposed)
        # By its name all later stages know that it separates people and vehicles.
        detectors = ["" if row in failures else detector for row in rows_N.tolist()]
    else:
        failures = {row: _NOT_IN_FILE for row, name in enumerate(detectors) if not name}
    inside = path.resolve().is_relative_to(folder.resolve())
    own_B = _select_own(collection, detector)
    boxes = _BestBoxes(collection, own_B, threshold)
    write_config(
        folder,
        {
            "collection": SURVEY if inside else str(path.resolve()),
            "split": None,
            # No hash of weights: MegaDetector's are not known.
            "model": {"path": f"{detector}/{TRIAGE}", "sha256": hashlib.sha256(detector.encode()).hexdigest()},
            "view": {"view": "whole"},
            "features": None,
            "hours": [],
            "places": [],
            "images_per_part": _IMAGES_PER_PART,
            "created": tables.now(),
        },
    )
    write_classes(folder, Classes(_LABELS, np.full(len(_LABELS), -1)), Taxa.from_rows([]))
    for number, first in enumerate(range(0, len(rows_N), _IMAGES_PER_PART)):
        size = min(_IMAGES_PER_PART, len(rows_N) - first)
        # The detector decides all that is no animal; of animals nothing more is known.
        probabilities = np.tile(np.eye(len(_LABELS), dtype=np.float32)[0], (size, 1))
        of_part = {row - first: reason for row, reason in failures.items() if first <= row < first + size}
        probabilities[list(of_part)] = np.nan
        write_part(folder, number, ScorePart(f"triage {number}", probabilities, of_part))
    write_tables(collection, rows_N, boxes, detectors, folder)
    table = tables.read_table(folder / BOXES)
    # All regions are in it, in their order, because all images are in the folder.
    tables.write_table(folder / BOXES, table.filter(pa.array(own_B)))


def _find_failures(collection: Collection, proposed: BoxesResult) -> dict[int, str]:
    """Return why images have no boxes: row -> reason."""
    status = collection.table("region_status")
    status = status.filter(pa.array(np.array(status["source"].to_pylist()) == SOURCE))
    # The last row of an image holds.
    last = {
        row["key"]: (row["status"], row["detail"]) for row in status.select(["key", "status", "detail"]).to_pylist()
    }
    failures = {}
    for row, key in enumerate(collection.keys):
        state, detail = last.get(key, ("unreachable", proposed.first_error))
        if state == DECODE_ERROR or key not in last:
            failures[row] = f"{state}: {detail}"
    return failures


def _decide(predictions: Predictions, threshold: float) -> pa.Table:
    """Decide each image by its best box; animals get its score."""
    stages = {
        "detector": {"threshold": threshold},
        "pooling": {"method": "none"},
        "rollup": {"enabled": False},
        "threshold": {"threshold": 0.0},
    }
    decisions = decide_results(predictions, validate(Stages, stages, where="foveate species triage"))
    best = _best_scores(predictions)
    # The model's own probability of an animal is 1, because it knows no other class.
    scores = [
        max(best.get(key, 0.0) for key in keys) if kind == "animal" else score
        for keys, kind, score in zip(*(decisions[name].to_pylist() for name in ("keys", "kind", "score")), strict=True)
    ]
    decisions = decisions.set_column(decisions.column_names.index("score"), "score", pa.array(scores, pa.float64()))
    tables.write_table(predictions.folder / DECISIONS, decisions)
    return decisions


def _best_scores(predictions: Predictions) -> dict[str, float]:
    best: dict[str, float] = {}
    for key, score in zip(predictions.boxes["key"].to_pylist(), predictions.boxes["score"].to_pylist(), strict=True):
        best[key] = max(score, best.get(key, 0.0))
    return best


def write_table(predictions: Predictions, decisions: pa.Table, path: Path, *, threshold: float) -> None:
    """Write a CSV with a line an image: file, kind, score, boxes, camera, time and failure, animals first.

    A video has a line for each kind that its frames show; its boxes are the most in one frame, its time that of its
    start.

    Args:
        decisions: one of each image, as `foveate.species.decide_results` writes them.
        threshold: score from which a box counts.
    """
    images = predictions.images.to_pylist()
    decided: dict[str, list[dict[str, Any]]] = {}
    for row in decisions.to_pylist():
        decided.setdefault(find_video(row["key"]) or row["key"], []).append(row)
    counts = Counter(box["key"] for box in predictions.boxes.to_pylist() if box["score"] >= threshold)
    most: dict[str, int] = {}
    for image in images:
        name = image["name"] = find_video(image["key"]) or image["key"]
        most[name] = max(most.get(name, 0), counts[image["key"]])
    lines = []
    # The first frame stands for its video.
    for name, image in {image["name"]: image for image in reversed(images)}.items():
        for row in decided.get(name, [{"kind": "unclassified", "score": 0.0}]):
            lines.append((KINDS.index(row["kind"]), row["score"], image))
    lines.sort(key=lambda line: (line[0], -np.nan_to_num(line[1]), line[2]["file"]))
    with csv_rows(path, ("file", "kind", "score", "boxes", "camera", "time", "failure")) as writer:
        for kind, score, image in lines:
            row = {name: image[name] for name in ("file", "camera", "time", "failure")}
            # An empty cell, because an image that was not looked at has no score.
            shown = "" if KINDS[kind] in ("unclassified", "unknown") else f"{score:.3f}"
            writer.writerow({**row, "kind": KINDS[kind], "score": shown, "boxes": most[image["name"]]})


def blur_people(predictions: Predictions, folder: Path, *, threshold: float) -> int:
    """Write copies of images with people whose boxes are blurred; return their number. Originals are not touched.

    A copy has no EXIF: a camera's thumbnail in it would show the person. Of videos the frames are copied, not the film.

    Args:
        folder: of the copies, by the files' own paths.
        threshold: score from which a box of a person counts.
    """
    people: dict[str, list[list[float]]] = {}
    for box in predictions.boxes.to_pylist():
        if get_kind(box["label"]) == "human" and box["score"] >= threshold:
            people.setdefault(box["key"], []).append([box[name] for name in ("x1", "y1", "x2", "y2")])
    files = dict(zip(predictions.images["key"].to_pylist(), predictions.images["file"].to_pylist(), strict=True))
    # Frames of a video have its file; their keys differ. The suffix is replaced below.
    files |= {key: f"{key}.jpg" for key in files if find_video(key)}
    written = 0
    for key, boxes in people.items():
        try:
            image = decode(predictions.collection.image_bytes(predictions.collection.find_row(key)))
        except BadImage as problem:
            say(f"{files[key]}: no blurred copy: {problem}")
            continue
        target = folder / safe_path(files[key]).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        blur_boxes(image, boxes).save(buffer, "JPEG", quality=90)
        write_bytes_atomically(target, buffer.getvalue())
        written += 1
    return written


def safe_path(file: str) -> PurePosixPath:
    """Return the path of a file below a folder, whatever the survey calls it.

    >>> str(safe_path("../C:\\\\cards\\\\A/IMG_1.JPG"))
    'C_/cards/A/IMG_1.JPG'
    """
    parts = [part.replace(":", "_") for part in file.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return PurePosixPath(*parts)


def blur_boxes(image: Image.Image, boxes_K4: Sequence[Sequence[float]]) -> Image.Image:
    """Return a copy of an image in which boxes, with a margin, are coarse blocks, softened.

    Args:
        boxes_K4: x1, y1, x2, y2 in [0, 1].
    """
    copy = image.copy()
    for x1, y1, x2, y2 in boxes_K4:
        width, height = (x2 - x1) * image.width, (y2 - y1) * image.height
        pad = _BLUR_MARGIN * max(width, height)
        left, top = max(int(x1 * image.width - pad), 0), max(int(y1 * image.height - pad), 0)
        right = min(int(np.ceil(x2 * image.width + pad)), image.width)
        bottom = min(int(np.ceil(y2 * image.height + pad)), image.height)
        if right <= left or bottom <= top:
            continue
        part = copy.crop((left, top, right, bottom))
        block = max(part.size) / _BLUR_BLOCKS
        small = part.resize(
            (max(round(part.width / block), 1), max(round(part.height / block), 1)), Image.Resampling.BOX
        )
        part = small.resize(part.size, Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(block / 2))
        copy.paste(part, (left, top))
    return copy
