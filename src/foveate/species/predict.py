"""Predict species on cards, surveys and collections: probabilities in parts, so that a killed run goes on.

A folder of cards is collected by reference first, into the results folder: from there on it is a survey like any other.
Images that cannot be reached, because a card or disk is away, count as failed, and the same call tries them again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import FolderLock, sha256_file
from foveate.core.progress import say
from foveate.core.stopping import StopRequest
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import NEEDS_EXTRA, BadImage, is_passing
from foveate.records.labeling import CardWatch, execute, find_failure, say_resumed
from foveate.records.ray_work import share_work
from foveate.species.boxes import NOTICE, SOURCE, BoxesResult, add_boxes
from foveate.species.crops import CropSettings, Views
from foveate.species.hints import match_places
from foveate.species.predictions import (
    BOXES,
    DECISIONS,
    FAILED,
    IMAGES,
    OK,
    SURVEY,
    ScorePart,
    check_folder,
    describe_images,
    list_pending,
    read_part,
    remove_parts,
    write_classes,
    write_config,
    write_part,
)
from foveate.species.settings import BoxSettings, PredictSettings
from foveate.species.sources import read_features
from foveate.survey.deployments import TABLE, write_first_table
from foveate.survey.store import name_detectors
from foveate.survey.survey import Survey
from foveate.vision.feature_cache import map_on_cores
from foveate.vision.preprocess import read_image
from foveate.vision.video.stills import read_stills

if TYPE_CHECKING:
    from foveate.species.model import SpeciesModel

# A part is what a killed run has to compute again at most.
_IMAGES_PER_PART = 256


@dataclass(frozen=True, slots=True)
class PredictResult:
    """Counts of `predict` over all its calls.

    Attributes:
        images: readable or not. computed: by this call. failed: that cannot be read.
        cropped: that show a box instead of the whole frame. boxed: that NanoDet proposed a box for.
        judged: that a detector with categories looked at, such as MegaDetector.
        stopped: by a signal; the same call resumes.
        unreachable: that could not be reached, `failed` ones among them; the same call tries them again.
        away: whether the call ended early, because no image that was left could be reached.
        first_error: why the first image that cannot be read could not, of `unreachable` before others.
    """

    images: int
    computed: int
    failed: int
    cropped: int
    boxed: int
    judged: int
    view: str
    seconds: float
    stopped: bool
    unreachable: int = 0
    away: bool = False
    first_error: str = ""

    def find_failure(self) -> UserError | None:
        """Return the error that the command ends with: no image could be read, or some could not be reached."""
        return find_failure(
            self.images,
            succeeded=self.failed < self.images,
            failed={"unreadable": self.failed},
            unreachable=self.unreachable,
            first_error=self.first_error,
            stopped=self.stopped,
        )


def predict(
    model: SpeciesModel,
    source: Path,
    folder: Path,
    settings: PredictSettings,
    *,
    device: str | None = None,
    workers: int | None = None,
) -> PredictResult:
    """Write the probabilities of all images of a source into a results folder; the same call again resumes.

    Args:
        source: a collection, or what `foveate collect` reads: a folder of cards, a Camtrap DP package, ...
        workers: threads that decode and compute on a processor; by default one a core.

    Raises:
        UserError: the source has no images, the model reads features and none are given, or the folder holds results
            of another model, source or view.
    """
    start = time.monotonic()
    failed, refused, proposed = list[str](), list[str](), None
    # Checked before the lock, which creates the folder: a refusal must leave nothing behind.
    check_folder(folder)
    _check_input(model, source, settings)
    with FolderLock(folder, purpose="predicting species"), StopRequest() as stop:
        collection_path, uncollected = prepare_collection(source, folder, settings, workers=workers)
        boxed = 0
        if _needs_boxes(model, collection_path, settings):
            say(NOTICE)
            proposed = add_boxes(collection_path, BoxSettings(), device=device, workers=workers)
            boxed = proposed.status.get("ok", 0)
            if proposed.stopped or proposed.away:
                seconds = round(time.monotonic() - start, 2)
                unreachable, first_error = _count_unreachable([], proposed, uncollected)
                result = PredictResult(proposed.images, 0, unreachable, 0, boxed, 0, model.view.view, seconds, False)
                ending = {"stopped": proposed.stopped, "away": proposed.away, "first_error": first_error}
                return replace(result, unreachable=unreachable, **ending)
        with Collection.open(collection_path) as collection:
            inside = collection_path.resolve().is_relative_to(folder.resolve())
            rows = collection.rows(settings.split)
            view = _choose_view(model, settings)
            views = Views(collection, rows, view)
            place_columns_N, cameras = _match_places(model, collection)
            detectors = name_detectors(collection.table("observations"), [collection.keys[row] for row in rows])
            write_config(
                folder,
                {
                    # Relative where it lies inside, so that the folder can be moved as a whole.
                    "collection": SURVEY if inside else str(collection_path.resolve()),
                    "split": settings.split,
                    "model": {"path": str(model.folder), "sha256": model.sha256},
                    "view": view.model_dump(mode="json"),
                    "features": None if settings.features is None else sha256_file(settings.features),
                    "hours": model.hours.tolist(),
                    "places": cameras,
                    "images_per_part": _IMAGES_PER_PART,
                    "created": tables.now(),
                },
            )
            write_classes(folder, model.classes, model.taxa)
            computed, left = _compute_parts(
                model, collection, rows, views, place_columns_N, folder, settings, device, workers, stop
            )
            away = bool(left) and not stop.signal_name
            if away:
                failed = left
            elif not stop.signal_name:
                failed, refused = write_tables(collection, rows, views, detectors, folder)
    unreachable, first_error = _count_unreachable(failed, proposed, uncollected)
    return PredictResult(
        images=len(rows) + len(refused),
        computed=computed,
        failed=len(failed) + len(refused),
        cropped=views.cropped,
        boxed=boxed,
        judged=sum(map(bool, detectors)),
        view=view.view,
        seconds=round(time.monotonic() - start, 2),
        stopped=stop.signal_name is not None,
        unreachable=unreachable,
        away=away,
        first_error=first_error or next(iter([*failed, *refused]), ""),
    )


def _choose_view(model: SpeciesModel, settings: PredictSettings) -> CropSettings:
    # Features are of whatever view they were computed from.
    return model.view if settings.features is None else CropSettings(view="whole")


def _count_unreachable(
    failures: Sequence[str], proposed: BoxesResult | None, uncollected: Sequence[str]
) -> tuple[int, str]:
    """Count the images that could not be reached in any pass; also return why the first could not.

    Args:
        failures: reasons of images without scores. uncollected: reasons of files that were not collected.
    """
    reasons = [failure for failure in failures if is_passing(failure)]
    # An image that came back after its box was to be proposed has scores, of the whole frame.
    if proposed is not None and proposed.unreachable > len(reasons):
        reasons += [proposed.first_error] * (proposed.unreachable - len(reasons))
    reasons += uncollected
    return len(reasons), next(iter(reasons), "")


def _check_input(model: SpeciesModel, source: Path, settings: PredictSettings) -> None:
    """Raise UserError if the model reads features and none are given, or the other way round."""
    if settings.features is not None and not settings.features.is_file():
        raise UserError(f"--features {settings.features}: no such file; expected npz or Parquet")
    if model.encoder_settings is None and settings.features is None:
        raise UserError(
            f"{model.folder}: trained on features that came from a file; give those of {source} with --features"
        )
    if model.encoder_settings is not None and settings.features is not None:
        raise UserError(f"--features has no effect: {model.folder} was trained on images; expected none")


def _needs_boxes(model: SpeciesModel, path: Path, settings: PredictSettings) -> bool:
    """Whether boxes are proposed: as the user says, else where a model of crops would see whole frames alone.

    Images without a box beside others with one are blank to the detector that was imported, and stay so.
    """
    if settings.detect is not None or settings.features is not None:
        return bool(settings.detect)
    # Folders written before the count was noted are of crops, too.
    if model.view.view != "crop" or model.info.provenance.get("cropped") == 0:
        return False
    with Collection.open(path) as collection:
        sources = set(collection.table("regions")["source"].unique().to_pylist())
        # A detector may have found every image empty.
        is_judged = any(name_detectors(collection.table("observations"), collection.keys))
    return sources <= {SOURCE} and not is_judged


def prepare_collection(
    source: Path, folder: Path, settings: PredictSettings, *, workers: int | None
) -> tuple[Path, list[str]]:
    """Return the collection of a source: itself, or one by reference in the results folder; add boxes of a file.

    Also returns why files of the source could not be reached; the same call tries them again.

    Raises:
        UserError: the source is neither a collection nor anything that `foveate collect` reads.
    """
    path, uncollected = source, list[str]()
    if not (source / layout.DESCRIPTION).is_file():
        from foveate.records.importers.formats import detect_format, load_formats

        path = folder / SURVEY
        # An empty folder is where a card was mounted.
        if (path / layout.DESCRIPTION).is_file() and not (source.is_file() or any(source.glob("*"))):
            raise UserError(f"{source} is missing or empty; is the card still there? Run the same command again")
        given = ["deployments"] if settings.deployments is not None else []
        importer, evidence = detect_format(str(source), options=given)
        if importer.name == "folder":
            # Plain pictures have no place in a survey: a folder of images is one of cards without a table.
            importer, evidence = load_formats()["cards"], "a folder of images"
        say(f"format: {importer.name} ({evidence})")
        options: dict[str, Any] = {"reference": True} if "reference" in importer.options else {}
        if settings.deployments is not None:
            # If it were ignored, every camera would lack a place without any explanation.
            if "deployments" not in importer.options:
                raise UserError(f"--deployments has no effect on the format {importer.name!r} of {source}")
            options["deployments"] = settings.deployments
        if importer.videos:
            options["frames_of"] = read_stills
        summary = importer.run(str(source), path, name=source.name, license=None, workers=workers, **options)
        for line in summary.lines():
            say(line)
        for finding, count in summary.quarantined.items():
            subject, _, reason = finding.partition(": ")
            # A missing library is no card that is away, and is named in the quarantine.
            if subject == "image" and is_passing(reason) and reason != NEEDS_EXTRA:
                uncollected += [reason] * count
        if importer.name == "cards" and settings.deployments is None and not (source / TABLE).is_file():
            table = folder / TABLE
            if not table.is_file():
                write_first_table(Survey.open(path), table)
            say(f"places are unknown: complete {table}, and add --deployments {table}")
    elif settings.deployments is not None:
        raise UserError(f"--deployments: {source} is a collection, which has its deployments already")
    if settings.results is not None:
        from foveate.survey.importers.results import add_results

        for line in add_results(path, settings.results).lines():
            say(line)
    return path, uncollected


def _compute_parts(
    model: SpeciesModel,
    collection: Collection,
    rows_N: NDArray[np.int64],
    views: Views,
    place_columns_N: NDArray[np.int64] | None,
    folder: Path,
    settings: PredictSettings,
    device_name: str | None,
    workers: int | None,
    stop: StopRequest,
) -> tuple[int, list[str]]:
    """Compute the parts that are missing; return the number of images in them.

    Also returns why images of missing parts could not be reached, if a card that is away ended the work.
    """
    if not len(rows_N):
        raise UserError(f"{collection.path}: no image to predict; see foveate inspect {collection.path}")
    sha256 = collection.index["sha256"]
    row_list = rows_N.tolist()
    parts = [row_list[first : first + _IMAGES_PER_PART] for first in range(0, len(row_list), _IMAGES_PER_PART)]
    # With the view: an image whose box has changed is predicted anew.
    hashes = [
        _hash_rows([(collection.keys[row], sha256[row], [views[row], *views.further(row)]) for row in part])
        for part in parts
    ]
    listed = [
        list_pending(folder, number, digest, len(part))
        for number, (digest, part) in enumerate(zip(hashes, parts, strict=True))
    ]
    pending = {number: positions for number, positions in enumerate(listed) if positions}
    remove_parts(folder, first=len(parts))
    num_pending = sum(map(len, pending.values()))
    if not pending:
        return 0, []
    say_resumed(len(row_list) - num_pending, len(row_list))
    (folder / IMAGES).unlink(missing_ok=True)  # written again once all parts are there
    # Decisions about other images: beside the new table, new images would have none.
    (folder / DECISIONS).unlink(missing_ok=True)
    device = choose_device(device_name or "auto")
    items = [
        _Part(number, hashes[number], positions, [parts[number][position] for position in positions])
        for number, positions in pending.items()
    ]
    score = _make_scorer(model, collection, rows_N, views, place_columns_N, settings, device)
    pending_rows = [parts[number][position] for number, positions in pending.items() for position in positions]
    watch = CardWatch(collection.can_reach, pending_rows)
    writer = _ScoreWriter(folder, [len(part) for part in parts], watch)
    with _threads(workers, device):
        description = f"predicting, {_IMAGES_PER_PART} images at a time"
        opener = functools.partial(_open_scorer, model.folder, collection.path, settings, device_name)
        executor = share_work(score, opener, items, settings, description=description)
        execute(executor, writer, stop=stop, watch=watch)
    left = [number for number in pending if number not in writer.numbers] if watch.is_away else []
    failures = writer.failures + [writer.failures[-1] for number in left for _ in pending[number]]
    return writer.num_images, failures if left else []


class _Part(NamedTuple):
    """Images to compute of a part: their positions in it, and their rows in the collection."""

    number: int
    digest: str
    positions: list[int]
    rows: list[int]


_Scored = tuple[int, list[int], ScorePart]
"""Number of a part, positions of the images that were computed, and their scores."""


def _open_scorer(
    model_folder: Path, path: Path, settings: PredictSettings, device_name: str | None
) -> Callable[[_Part], Iterator[_Scored]]:
    """Open model and collection in a process of its own; return what scores a part there."""
    from foveate.species.folder import open_species  # it needs torch's networks, which the settings do not

    model, collection = open_species(model_folder), Collection.open(path)
    rows_N = collection.rows(settings.split)
    place_columns_N, _ = _match_places(model, collection)
    views, device = Views(collection, rows_N, _choose_view(model, settings)), choose_device(device_name or "auto")
    return _make_scorer(model, collection, rows_N, views, place_columns_N, settings, device)


def _make_scorer(
    model: SpeciesModel,
    collection: Collection,
    rows_N: NDArray[np.int64],
    views: Views,
    place_columns_N: NDArray[np.int64] | None,
    settings: PredictSettings,
    device: torch.device,
) -> Callable[[_Part], Iterator[_Scored]]:
    """Return what scores the images of a part, on all cores that torch may use."""
    if settings.features is None:
        read = _pixel_reader(model, collection, views, device, settings.batch)
    else:
        read = _feature_reader(settings.features, collection, rows_N)
    compute = _make_compute(model, collection, views, read, place_columns_N)

    def score(part: _Part) -> Iterator[_Scored]:
        rows = part.rows
        batches = [rows[first : first + settings.batch] for first in range(0, len(rows), settings.batch)]
        results = map_on_cores(compute, batches, device=device)
        failures = {rows.index(row): reason for *_, reasons in results for row, reason in reasons.items()}
        probabilities = np.concatenate([probabilities for probabilities, *_ in results])
        boxes_BK = np.concatenate([boxes for _, boxes, *_ in results])
        links = {name: np.concatenate([links[name] for _, _, links, _ in results]) for name in results[0][2]}
        scores = ScorePart(part.digest, probabilities, failures, links)
        if len(boxes_BK):
            counts = [len(views.further_boxes(row)) for row in rows]
            scores = replace(scores, box_rows_B=np.repeat(np.arange(len(rows)), counts), box_probabilities_BK=boxes_BK)
        yield part.number, part.positions, scores

    return score


class _ScoreWriter:
    """Writes each part of scores as soon as it is computed, and tells a watch about its images.

    Attributes:
        numbers: of the parts that were written. num_images: in them. failures: why images could not be reached.
    """

    due = False  # nothing waits

    def __init__(self, folder: Path, sizes: Sequence[int], watch: CardWatch) -> None:
        self._folder, self._sizes, self._watch = folder, sizes, watch
        self.numbers, self.num_images, self.failures = set[int](), 0, list[str]()

    def add(self, results: Iterable[tuple[int, list[int], ScorePart]]) -> None:
        """Write parts: number, positions of the images that were computed, and their scores."""
        for number, positions, part in results:
            for position in range(len(positions)):
                self._watch.note(is_passing(part.failures.get(position, "")))
            self.failures += filter(is_passing, part.failures.values())
            self.numbers.add(number)
            # Images of the part that were reached before are not read again.
            if len(positions) < self._sizes[number]:
                part = read_part(self._folder, number).replace_rows(positions, part)
            write_part(self._folder, number, part)
            self.num_images += len(positions)

    def flush(self) -> None:
        """Do nothing."""


class _threads:
    """Set the number of torch's threads, which `map_on_cores` takes for that of cores."""

    def __init__(self, workers: int | None, device: torch.device) -> None:
        self._workers = workers if device.type == "cpu" else None

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._workers is not None:
            torch.set_num_threads(min(self._workers, os.cpu_count() or 1))

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._before)


def _hash_rows(rows: Sequence[tuple[str, str, Sequence[View]]]) -> str:
    text = "\0".join("\1".join([key, sha256, *map(repr, views)]) for key, sha256, views in rows)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# Vectors of the rows that can be read, in their order; after them those of their further boxes; why others cannot.
_Reader = Callable[[Sequence[int]], tuple[NDArray[np.float32], dict[int, str]]]


def _pixel_reader(
    model: SpeciesModel, collection: Collection, views: Views, device: torch.device, batch: int
) -> _Reader:
    encoder = model.load_encoder(device)

    def encode(pixels: list[torch.Tensor]) -> NDArray[np.float32]:
        with torch.inference_mode():
            features = encoder.frozen_features(torch.stack(pixels).to(device))
            return encoder.image_vectors(features).float().cpu().numpy()

    def read(rows: Sequence[int]) -> tuple[NDArray[np.float32], dict[int, str]]:
        failures: dict[int, str] = {}
        owners, pixels, vectors = list[int](), list[torch.Tensor](), list[NDArray[np.float32]]()
        further = [(row, view) for row in rows for view in views.further(row)]
        for row, view in [*((row, views[row]) for row in rows), *further]:
            if row in failures:
                continue
            # A herd has more boxes than a batch has images: no more of them are in memory at once.
            if len(pixels) == batch:
                vectors.append(encode(pixels))
                pixels = []
            try:
                pixels.append(read_image(collection, row, encoder.preprocess, view)[0])
                owners.append(row)
            except BadImage as problem:
                # A card may be pulled out between two boxes of an image, which is tried again as a whole then.
                failures[row] = f"{problem.reason}: {problem}"
        vectors += [encode(pixels)] if pixels else []
        if not vectors:
            return np.zeros((0, 0), np.float32), failures
        return np.concatenate(vectors)[[row not in failures for row in owners]], failures

    return read


def _feature_reader(path: Path, collection: Collection, rows_N: NDArray[np.int64]) -> _Reader:
    features_NF, missing = read_features(path, collection.keys, rows_N)
    features, lacking = features_NF.numpy(), set(missing.tolist())

    def read(rows: Sequence[int]) -> tuple[NDArray[np.float32], dict[int, str]]:
        failures = {row: "no features in the file" for row in rows if row in lacking}
        return features[[row for row in rows if row not in failures]], failures

    return read


def _match_places(model: SpeciesModel, collection: Collection) -> tuple[NDArray[np.int64] | None, list[str]]:
    """Return the model's place of each image and its cameras' names; none where no image is at any of its places."""
    if model.info.method != "cosmo" or not len(model.places_P2) or not collection.has_survey:
        return None, []
    survey = Survey.open(collection)
    columns_N, cameras = match_places(model.places_P2, survey.places_N2, survey.camera_N)
    return (columns_N, cameras) if (columns_N >= 0).any() else (None, [])


_Computed = tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[Any]], dict[int, str]]


def _make_compute(
    model: SpeciesModel,
    collection: Collection,
    views: Views,
    read: _Reader,
    place_columns_N: NDArray[np.int64] | None,
) -> Callable[[Sequence[int]], _Computed]:
    """Return the function from rows to probabilities of them and of their further boxes, links, and failures."""
    # MLP-concat alone reads place and hour of an image; of COSMO they are supervision.
    survey = Survey.open(collection) if model.info.method == "mlp_concat" else None

    candidates = {"hours": ("time", len(model.hours))} if len(model.hours) else {}
    if place_columns_N is not None:
        candidates["places"] = ("place", len(model.places_P2))

    def compute(rows: Sequence[int]) -> _Computed:
        # Initialized to NaN: a row that failed stays NaN through all stages, and its further boxes with it.
        probabilities = np.full((len(rows), len(model.classes)), np.nan, dtype=np.float32)
        owners = np.repeat(np.arange(len(rows)), [len(views.further_boxes(row)) for row in rows])
        boxes = np.full((len(owners), len(model.classes)), np.nan, dtype=np.float32)
        links: dict[str, NDArray[Any]] = {
            name: np.full((len(rows), count), np.nan, dtype=np.float32) for name, (_, count) in candidates.items()
        }
        if place_columns_N is not None:
            links["place_columns"] = place_columns_N[list(rows)]
        lacking = set()
        if survey is not None:
            lacking = {row for row in rows if np.isnan([*survey.places_N2[row], survey.hour_N[row]]).any()}
        vectors, failures = read([row for row in rows if row not in lacking])
        failures |= dict.fromkeys(lacking, "no place or hour: the model reads both")
        readable = [position for position, row in enumerate(rows) if row not in failures]
        if readable:
            is_readable = np.isin(owners, readable)
            context: dict[str, Any] = {}
            if survey is not None:
                used = [rows[position] for position in (*readable, *owners[is_readable])]
                context = {"places_N2": survey.places_N2[used], "hours_N": survey.hour_N[used]}
            scores = model.probabilities(vectors, **context)
            probabilities[readable], boxes[is_readable] = np.split(scores, [len(readable)])
            for name, (relation, _) in candidates.items():
                links[name][readable] = model.predict_links(vectors[: len(readable)], relation)
        return probabilities, boxes, links, failures

    return compute


class UsedBoxes(Protocol):
    """What says which box of an image was used, as `foveate.species.crops.Views` does."""

    def box(self, row: int) -> NDArray[np.float64] | None:
        """Return the box of a row; None for the whole image."""
        ...

    def further_boxes(self, row: int) -> Iterable[NDArray[np.float64]]:
        """Return the boxes of further animals of a row that were looked at, too."""
        ...


def write_tables(
    collection: Collection, rows_N: NDArray[np.int64], views: UsedBoxes, detectors: Sequence[str], folder: Path
) -> tuple[list[str], list[str]]:
    """Write the tables of images and boxes; return why images failed, and why files are none.

    Args:
        views: the box of each image that was looked at.
        detectors: of `name_detectors`; stored, because results that are imported later are not those of the boxes.
    """
    count = len(rows_N)
    failures: dict[int, str] = {}
    for number in range(-(-count // _IMAGES_PER_PART)):
        part = read_part(folder, number)
        failures |= {number * _IMAGES_PER_PART + row: reason for row, reason in part.failures.items()}
    survey = Survey.open(collection) if collection.has_survey else None
    keys = [collection.keys[row] for row in rows_N.tolist()]
    columns: dict[str, list[Any]] = {"key": keys, **describe_images(collection, rows_N, survey)}
    columns["status"] = [FAILED if row in failures else OK for row in range(count)]
    columns["failure"] = [failures.get(row, "") for row in range(count)]
    columns["scored"] = [True] * count
    columns["detector"] = list(detectors)
    columns["cropped"] = [views.box(row) is not None for row in rows_N.tolist()]
    known, refused = set(collection.keys), list[str]()
    for row in collection.quarantine().to_pylist():
        # A file that was refused when it was collected is no row of the collection, and must not vanish.
        if row["subject"] == "image" and row["key"] not in known:
            # The source ends with the file's path; other programs look it up by name and suffix.
            start = row["source"].rfind(row["key"])
            texts = {"key": row["key"], "file": row["source"][start:] if start >= 0 else row["key"], "status": FAILED}
            texts["failure"] = f"{row['reason']}: {row['detail']}"
            for name, values in columns.items():
                values.append(False if name in ("scored", "cropped") else texts.get(name, ""))
            known.add(row["key"])
            refused.append(texts["failure"])
    # Boxes first: the table of images says that the folder is complete.
    tables.write_table(folder / BOXES, _boxes_table(collection, rows_N, views))
    tables.write_table(folder / IMAGES, pa.table(columns))
    return list(failures.values()), refused


def _boxes_table(collection: Collection, rows_N: NDArray[np.int64], views: UsedBoxes) -> pa.Table:
    regions = collection.grouped("regions")
    selected = np.flatnonzero(np.isin(regions.row_numbers, rows_N))
    rows = regions.row_numbers[selected]
    corners = collection.region_boxes[selected].astype(np.float64)
    cropped_B4, crops_B = np.full((len(rows), 4), np.nan), np.full(len(rows), -1)
    for index, row in enumerate(rows.tolist()):
        if (box := views.box(row)) is not None:
            cropped_B4[index] = box
            for number, further in enumerate(views.further_boxes(row), start=1):
                if (further == corners[index]).all():
                    crops_B[index] = number
    columns: dict[str, Any] = {"key": pa.array(collection.keys, pa.string()).take(pa.array(rows))}
    columns |= {name: corners[:, index] for index, name in enumerate(("x1", "y1", "x2", "y2"))}
    columns |= {"score": regions.array("score")[selected].astype(np.float64)}
    columns |= {name: regions.table[name].take(pa.array(selected)) for name in ("label", "source")}
    # NaN, of images without a crop, equals no corner.
    is_used_B = (cropped_B4 == corners).all(axis=1)
    return pa.table({**columns, "used": is_used_B, "crop": np.where(is_used_B, 0, crops_B)})
