"""Offline boxes for images that have none: NanoDet-g proposes, rows are written in parts, a killed run goes on.

An image that cannot be reached, because its card or disk is away, gets no row: the same command tries it again.

NanoDet-g was trained on COCO and is no MegaDetector: on 87 real frames with an animal it boxed 83 with a score above
0.2, the default here, and called a jaguar a giraffe. So only its boxes are used, never its class names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import NothingSucceededError, UserError
from foveate.core.progress import say, track
from foveate.records.annotate import PartWriter, describe_unreachable, matching_parts, remove_rows, write_results
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.record import Region
from foveate.records.region_sources import detector_source
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.species.settings import BoxSettings
from foveate.training.stopping import StopRequest
from foveate.vision.detectors import NanoDetProposer, Proposals, ProposalSettings

NOTICE = (
    "boxes by NanoDet-g, a detector of everyday objects, not a MegaDetector: it misses animals and boxes stones; "
    "import MegaDetector's results where you have them (foveate collect --results)"
)
# NanoDet knows no kinds of animals, and its names of objects are wrong on camera-trap images.
CATEGORY = "object"
SOURCE = detector_source("nanodet")
_OK, _NO_BOXES, _DECODE_ERROR = "ok", "no_boxes", "decode_error"
# Details of rows of earlier versions, which stored an image whose card was away as one that cannot be decoded.
_AWAY = re.compile(
    r" is missing(: it was moved or deleted)?$| cannot be read: | is not a regular file any more$"
    r"| is not the imported image: its bytes changed$|\.tar ends within the image "
)
_BATCH = 16
_IMAGES_PER_PART, _SECONDS_PER_PART = 512, 30.0
_DECODE_SCALE = 2  # of the network's side: enough for a good reduction, several times faster than decoding whole


@dataclass(frozen=True, slots=True)
class BoxedImage:
    """Boxes of one image, or why it has none."""

    key: str
    status: str
    proposals: Proposals | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BoxesResult:
    """Counts of `add_boxes` over all its calls.

    Attributes:
        images: of the collection. skipped: those with boxes of another source.
        status: "ok", "no_boxes" or "decode_error" -> images.
        stopped: by a signal; the same call resumes.
        unreachable: images that this call could not reach; the same call tries them again.
        first_error: why the first image that cannot be read could not, of `unreachable` before others.
    """

    images: int
    skipped: int
    status: dict[str, int]
    boxes: int
    seconds: float
    stopped: bool
    unreachable: int = 0
    first_error: str = ""

    def find_failure(self) -> UserError | None:
        """Return the error that the command ends with: no image could be read, or some could not be reached."""
        succeeded = self.status.get(_OK, 0) + self.status.get(_NO_BOXES, 0)
        examined, damaged = self.images - self.skipped, self.status.get(_DECODE_ERROR, 0)
        if self.unreachable:
            reason = describe_unreachable(self.unreachable, examined, self.first_error)
            return UserError(reason) if succeeded else NothingSucceededError(reason)
        # Over all calls: a repeated one may have nothing left to do.
        if damaged and not succeeded:
            return NothingSucceededError(f"none of {damaged:,} images can be decoded (the first: {self.first_error})")
        return None


def add_boxes(
    path: Path, settings: BoxSettings, *, device: str | None = None, workers: int | None = None
) -> BoxesResult:
    """Add NanoDet's boxes to the regions of a collection; the same call again resumes.

    Boxes that it proposed with another threshold or number are removed first.

    Args:
        workers: threads that decode images; by default one a core.

    Raises:
        UserError: another process writes the collection.
    """
    start = time.monotonic()
    proposer = NanoDetProposer(
        ProposalSettings(threshold=settings.threshold, max_boxes=settings.max_boxes), device=device
    )
    # Not `every_image`: it selects images and changes no box.
    recipe = {"threshold": settings.threshold, "max_boxes": settings.max_boxes, "version": proposer.version}
    recipe_hash = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    status: Counter[str] = Counter()
    _remove_earlier(path, recipe_hash)
    # Opened after `_remove_earlier`, which takes the same writer lock of the collection.
    with AnnotationAppender(path, purpose="proposing boxes") as appender, Collection.open(path) as collection:
        completed: set[str] = set()
        boxes, first_damage = 0, ""
        known = {"source": SOURCE, "recipe_hash": recipe_hash}
        # Reads statuses, not regions: an image in which nothing was found is done as well.
        for part in matching_parts(path, "region_status", ["key", "status", "regions", "detail"], where=known):
            for row in part.to_pylist():
                if row["status"] == _DECODE_ERROR:
                    if _AWAY.search(row["detail"]):
                        continue
                    first_damage = first_damage or row["detail"]
                completed.add(row["key"])
                status[row["status"]] += 1
                boxes += row["regions"]
        # Images with an imported box are skipped: a second box by NanoDet would show the same animal twice.
        imported = set() if settings.every_image else _rows_with_boxes(collection)
        pending = [row for row, key in enumerate(collection.keys) if key not in completed and row not in imported]
        if completed:
            say(f"resumed: {len(completed):,} of {len(collection):,} images have their boxes")

        def count(images: Sequence[BoxedImage], seconds: float) -> None:
            nonlocal boxes, first_damage
            # Counted once a part is on disk: what a kill loses is counted by the call that resumes.
            status.update(image.status for image in images)
            boxes += sum(len(image.proposals.boxes_K4) for image in images if image.proposals)
            first_damage = first_damage or next((image.detail for image in images if image.detail), "")

        writer = PartWriter(
            appender,
            Provenance(SOURCE, "nanodet-g", recipe_hash),
            _split_rows,
            max_results=_IMAGES_PER_PART,
            max_seconds=_SECONDS_PER_PART,
            on_part=count,
        )
        unreachable: list[BadImage] = []
        with StopRequest() as stop:
            write_results(_propose(collection, pending, proposer, workers, stop, unreachable), writer)
        return BoxesResult(
            images=len(collection),
            skipped=len(imported),
            status=dict(status),
            boxes=boxes,
            seconds=round(time.monotonic() - start, 2),
            stopped=stop.signal_name is not None,
            unreachable=len(unreachable),
            first_error=str(unreachable[0]) if unreachable else first_damage,
        )


def _remove_earlier(path: Path, recipe_hash: str) -> None:
    """Remove this detector's rows of other settings: beside new ones an image would have each box twice."""

    def select(part: pa.Table) -> NDArray[np.bool_]:
        columns = zip(part["source"].to_pylist(), part["recipe_hash"].to_pylist(), strict=True)
        return np.array([source == SOURCE and digest != recipe_hash for source, digest in columns], dtype=bool)

    for table in ("regions", "region_status"):
        remove_rows(path, table, select, purpose="replacing boxes")


def _rows_with_boxes(collection: Collection) -> set[int]:
    """Rows that have a box of another source than this detector."""
    regions = collection.grouped("regions")
    other = np.array([source != SOURCE for source in regions.table["source"].to_pylist()], dtype=bool)
    return set(regions.row_numbers[other].tolist()) if len(other) else set()


def _propose(
    collection: Collection,
    rows: Sequence[int],
    proposer: NanoDetProposer,
    workers: int | None,
    stop: StopRequest,
    unreachable: list[BadImage],
) -> Iterator[BoxedImage]:
    """Yield the boxes of images; those that cannot be reached are appended to `unreachable` instead."""
    widths, heights = collection.index["width"], collection.index["height"]

    def load(row: int) -> NDArray[np.uint8] | BadImage:
        try:
            image = decode(collection.image_bytes(row), longest_side=_DECODE_SCALE * proposer.input_px)
        # Returned, because raising it would end the whole run for one damaged image.
        except BadImage as problem:
            return problem
        return proposer.to_square(image)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in track(range(0, len(rows), _BATCH), description=f"boxes, {_BATCH} images at a time"):
            batch = rows[start : start + _BATCH]
            squares = list(pool.map(load, batch))
            usable = [
                (row, square) for row, square in zip(batch, squares, strict=True) if not isinstance(square, BadImage)
            ]
            proposals = iter(
                proposer.propose(
                    [square for _, square in usable], [(int(widths[row]), int(heights[row])) for row, _ in usable]
                )
                if usable
                else ()
            )
            for row, square in zip(batch, squares, strict=True):
                key = collection.keys[row]
                if isinstance(square, BadImage):
                    if square.is_passing:
                        # Without a row: one would say that the image is done.
                        unreachable.append(square)
                    else:
                        yield BoxedImage(key, _DECODE_ERROR, detail=str(square))
                    continue
                of_image = next(proposals)
                yield BoxedImage(key, _OK if len(of_image.boxes_K4) else _NO_BOXES, of_image)
            # Checked after the batch: its boxes are computed already and go into the last part.
            if stop.signal_name:
                return


def _split_rows(images: Sequence[BoxedImage]) -> dict[str, list[dict[str, object]]]:
    regions: list[dict[str, object]] = []
    statuses: list[dict[str, object]] = []
    for image in images:
        boxes = () if image.proposals is None else zip(image.proposals.boxes_K4, image.proposals.scores_K, strict=True)
        rows = [
            region_row(image.key, Region(Box.from_array(box), CATEGORY, float(score), label=CATEGORY, source=SOURCE))
            for box, score in boxes
        ]
        regions += rows
        thin = image.proposals.thin if image.proposals else 0
        row: dict[str, object] = {"key": image.key, "status": image.status, "kind": "", "phrases": 0}
        statuses.append({**row, "regions": len(rows), "thin": thin, "detail": image.detail, "source": SOURCE})
    # Statuses last: a kill between the tables repeats images whose regions are there, and equal rows are skipped.
    return {"regions": regions, "region_status": statuses}
