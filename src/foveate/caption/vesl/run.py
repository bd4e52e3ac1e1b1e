"""The run behind `foveate regions`: caption -> phrases -> detection -> rows, with a status for every image.

Rows are written in parts, regions before statuses; a kill loses at most what was not written yet. The same command
again goes on with the images that have no status of its recipe.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind, find_detector
from foveate.caption.vesl.tagging import Extractor, open_extractor
from foveate.caption.vesl.work import (
    DECODE_ERROR,
    DETECTOR_ERROR,
    NO_BOXES,
    NO_CAPTION,
    NO_PHRASES,
    OK,
    STATUSES,
    Captions,
    Done,
    RegionLabelSettings,
    Said,
    done_before,
    partner_of,
    recipe_hash,
    recipe_of,
)
from foveate.core.progress import say, track
from foveate.core.recipes import Settings
from foveate.core.version import code_revision
from foveate.records.annotate import PartWriter, write_results
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.record import Region
from foveate.records.region_sources import pseudo_label_source
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.training.stopping import StopRequest

BATCH = 16
# Rows are written after so many images or seconds.
_IMAGES_PER_PART = 1024
_SECONDS_PER_PART = 30.0
# Pixels of the decoded image's longer side for each pixel of the detector's.
_DECODED = 2
# What libraries raise when they meet one image that they cannot work on.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError)


@dataclass(frozen=True, slots=True)
class Opened:
    """All that a run works with: `rows` of the collection that it is about, what was `done` before, what is left."""

    collection: Collection
    settings: RegionLabelSettings
    kind: DetectorKind
    detector: Detector
    extractor: Extractor
    captions: Captions
    recipe: dict[str, Any]
    hash: str
    partners: dict[int, int]
    rows: list[int]
    done: Done
    todo: list[int]


@dataclass(slots=True)
class Labeled:
    """What became of one image; `before` are regions that a killed run wrote without its status."""

    key: str
    status: str
    kind: str = ""
    phrases: int = 0
    thin: int = 0
    detail: str = ""
    before: int = 0
    regions: list[dict[str, object]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The run's result.json, and the rows of the collection that it was about."""

    result: dict[str, Any]
    rows: list[int]
    stopped: bool


def open_run(
    collection: Collection,
    settings: RegionLabelSettings,
    *,
    detector: str,
    detector_settings: Settings,
    split: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
) -> Opened:
    """Opens captions, tagger and detector, names the recipe, and looks for what is left to do.

    Raises:
        UserError: for a tagger or detector that cannot be opened, or when no caption has a wanted kind.
    """
    rows = [int(row) for row in collection.rows(split)][:limit]
    kind = find_detector(detector)
    captions, extractor = Captions(collection, settings), open_extractor(settings.phrases)
    found = kind.open(detector_settings, collection, device)
    recipe = recipe_of(settings, extractor, found, detector_settings)
    if settings.shuffle_phrases:
        recipe["seed"] = seed
    partners = partner_of(rows, seed) if settings.shuffle_phrases else {}
    hashed = recipe_hash(recipe)
    done = done_before(collection, hashed, {collection.keys[row] for row in rows})
    todo = [row for row in rows if collection.keys[row] not in done.keys]
    return Opened(collection, settings, kind, found, extractor, captions, recipe, hashed, partners, rows, done, todo)


def phrases_of(run: Opened, row: int) -> tuple[Said, list[str]]:
    """The chosen texts of an image and their phrases; in the control those of its partner."""
    said = run.captions.of(run.partners.get(row, row))
    most, found = run.settings.phrases.max_phrases, list[str]()
    for text in said.texts:
        found += [
            one for one in run.extractor(text).phrases if run.settings.phrases.recipe == "paper" or one not in found
        ]
    return said, found[:most]


def label_regions(
    path: Path,
    settings: RegionLabelSettings,
    *,
    detector: str,
    detector_settings: Settings,
    split: str | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    device: str | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Outcome:
    """Labels the regions of a collection's images; the same call again does what is left.

    Args:
        path: of the collection. split: only its images. limit: the first so many. batch: images of one pass.
        seed: of the control `shuffle_phrases`. workers: threads that decode.

    Raises:
        UserError: another process writes the collection, or see `open_run`.
    """
    began = time.monotonic()
    with AnnotationAppender(path, purpose="labeling regions") as appender, Collection.open(path) as collection:
        run = open_run(
            collection,
            settings,
            detector=detector,
            detector_settings=detector_settings,
            split=split,
            limit=limit,
            device=device,
            seed=seed,
        )
        before = len(run.rows) - len(run.todo)
        if before:
            say(f"{before} of {len(run.rows)} images were labeled by this recipe before")
        tally = _Tally()
        writer = PartWriter(
            appender,
            Provenance(pseudo_label_source(run.detector.name), run.detector.model, run.hash),
            _split_rows,
            max_results=_IMAGES_PER_PART,
            max_seconds=_SECONDS_PER_PART,
            on_part=tally.add,
        )
        with StopRequest() as stop:
            write_results(_label_all(run, batch, workers, stop), writer)
        stopped = stop.signal_name is not None
    result = {
        "kind": "regions",
        "collection": collection.name,
        "split": split,
        "detector": detector,
        "oracle": run.kind.oracle,
        "model": run.detector.model,
        "source": pseudo_label_source(detector),
        "recipe": run.recipe,
        "recipe_hash": run.hash,
        "images": len(run.rows),
        "done_before": before,
        "status": {name: tally.status[name] + run.done.status[name] for name in STATUSES},
        "regions": tally.regions + run.done.regions,
        "thin": tally.thin + run.done.thin,
        "regions_new": tally.regions,
        "seconds": round(time.monotonic() - began, 2),
        "stopped": stopped,
        "code": code_revision(),
    }
    return Outcome(result, run.rows, stopped)


def plan(
    path: Path,
    settings: RegionLabelSettings,
    *,
    detector: str,
    detector_settings: Settings,
    split: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
    looked_at: int = 1000,
) -> dict[str, Any]:
    """What a run would do, from the phrases of the first `looked_at` images; nothing is detected or written."""
    with Collection.open(path) as collection:
        run = open_run(
            collection,
            settings,
            detector=detector,
            detector_settings=detector_settings,
            split=split,
            limit=limit,
            device=device,
            seed=seed,
        )
        found = [phrases_of(run, row) for row in run.todo[:looked_at]]
    with_phrases = [phrases for _, phrases in found if phrases]
    return {
        "detector": detector,
        "oracle": run.kind.oracle,
        "model": run.detector.model,
        "recipe_hash": run.hash,
        "images": len(run.rows),
        "todo": len(run.todo),
        "looked_at": len(found),
        "captions": dict(Counter(said.kind or "none" for said, _ in found)),
        "with_phrases": len(with_phrases),
        "phrases_per_image": round(float(np.mean([len(one) for one in with_phrases])), 2) if with_phrases else 0.0,
        "examples": [{"text": " ".join(said.texts)[:200], "phrases": phrases} for said, phrases in found[:3]],
    }


def _label_all(run: Opened, batch: int, workers: int, stop: StopRequest) -> Iterator[Labeled]:
    for start in track(range(0, len(run.todo), batch), description=f"labeling, {batch} images at a time"):
        yield from _label(run, run.todo[start : start + batch], workers)
        if stop.signal_name:
            return


def _label(run: Opened, rows: Sequence[int], workers: int) -> Iterator[Labeled]:
    """One batch: what each of its images is labeled with, in order."""
    finished: dict[int, Labeled] = {}
    asked: list[tuple[int, Said, list[str]]] = []
    for row in rows:
        key = run.collection.keys[row]
        said, phrases = phrases_of(run, row)
        if not said.texts:
            finished[row] = Labeled(key, NO_CAPTION)
        elif not phrases:
            finished[row] = Labeled(key, NO_PHRASES, said.kind)
        elif key in run.done.unfinished:  # its regions were written, its status was not
            finished[row] = Labeled(key, OK, said.kind, len(phrases), before=run.done.unfinished[key])
        else:
            asked.append((row, said, phrases))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        images = list(pool.map(lambda one: _shown(run, one[0]), asked))
    good = []
    for (row, said, phrases), image in zip(asked, images, strict=True):
        if isinstance(image, DetectorInput):
            good.append((image, said, phrases))
        else:
            key = run.collection.keys[row]
            finished[row] = Labeled(key, DECODE_ERROR, said.kind, len(phrases), detail=image)
    for (image, said, phrases), found in zip(good, _detect(run, good), strict=True):
        finished[image.row] = _labeled(run, image, said, phrases, found)
    yield from (finished[row] for row in rows)


def _shown(run: Opened, row: int) -> DetectorInput | str:
    index = run.collection.index
    width, height, key = int(index["width"][row]), int(index["height"][row]), run.collection.keys[row]
    if not run.kind.reads_pixels:
        return DetectorInput(row, key, None, width, height)
    try:
        image = decode(run.collection.image_bytes(row), longest_side=_DECODED * max(1, run.detector.input_px))
    except BadImage as problem:
        return str(problem)
    return DetectorInput(row, key, image, width, height)


def _detect(run: Opened, good: Sequence[tuple[DetectorInput, Said, list[str]]]) -> list[Detections | str]:
    """What the detector says; where it fails on the batch, of each image alone, or why it failed on it."""
    if not good:
        return []
    try:
        return list(run.detector.detect([one for one, _, _ in good], [phrases for _, _, phrases in good]))
    except _FAILURES as error:
        if len(good) == 1:
            return [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
        return [one for each in good for one in _detect(run, [each])]


def _labeled(run: Opened, image: DetectorInput, said: Said, phrases: list[str], found: Detections | str) -> Labeled:
    if isinstance(found, str):
        return Labeled(image.key, DETECTOR_ERROR, said.kind, len(phrases), detail=found)
    rows = []
    for number in range(len(found.boxes_K4)):
        region = Region(
            Box.from_array(found.boxes_K4[number]),
            phrases[int(found.phrase_K[number])],
            float(found.scores_K[number]),
            source=pseudo_label_source(run.detector.name),
        )
        details: dict[str, Any] = {
            "detector": run.detector.name,
            "version": run.detector.version,
            "input_px": run.detector.input_px,
            "caption": said.kind,
            "tagger": run.extractor.name,
            "phrases": run.settings.phrases.recipe,
        }
        if found.similarity_K is not None:
            details["similarity"] = round(float(found.similarity_K[number]), 4)
        if run.kind.oracle:
            details["oracle"] = True
        if run.partners:
            details["shuffled"] = True
        rows.append({**region_row(image.key, region), "details": json.dumps(details, sort_keys=True)})
    status = OK if rows else NO_BOXES
    return Labeled(image.key, status, said.kind, len(phrases), found.thin, regions=rows)


class _Tally:
    """Counts of what a run labeled."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.regions = self.thin = 0

    def add(self, labels: Sequence[Labeled], seconds: float) -> None:
        """Count a part once its rows are written."""
        self.status.update(image.status for image in labels)
        self.regions += sum(len(image.regions) + image.before for image in labels)
        self.thin += sum(image.thin for image in labels)


def _split_rows(labels: Sequence[Labeled]) -> dict[str, list[dict[str, object]]]:
    statuses: list[dict[str, object]] = [
        {
            "key": image.key,
            "status": image.status,
            "kind": image.kind,
            "phrases": image.phrases,
            "regions": len(image.regions) + image.before,
            "thin": image.thin,
            "detail": image.detail,
        }
        for image in labels
    ]
    # Statuses last: an image with a status is never labeled again.
    return {"regions": [row for image in labels for row in image.regions], "region_status": statuses}
