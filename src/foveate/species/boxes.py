"""Offline boxes for images that have none: NanoDet-g proposes, rows are written in parts, a killed run goes on.

An image that cannot be reached, because its card or disk is away, gets no row: the same command tries it again.

NanoDet-g was trained on COCO and is no MegaDetector: on 87 real frames with an animal it boxed 83 with a score above
0.2, the default here, and called a jaguar a giraffe. So only its boxes are used, never its class names.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.records.annotate import remove_rows
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.labeling import (
    CardWatch,
    LabeledImage,
    Labeling,
    find_failure,
    find_progress,
    hash_recipe,
    in_batches,
    label_images,
    say_resumed,
)
from foveate.records.record import Region
from foveate.records.region_sources import detector_source
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.species.settings import BoxSettings
from foveate.vision.detectors import NanoDetProposer, ProposalSettings

NOTICE = (
    "boxes by NanoDet-g, a detector of everyday objects, not a MegaDetector: it misses animals and boxes stones; "
    "import MegaDetector's results where you have them (foveate collect --results)"
)
# NanoDet knows no kinds of animals, and its names of objects are wrong on camera-trap images.
CATEGORY = "object"
SOURCE = detector_source("nanodet")
_OK, _NO_BOXES, _DECODE_ERROR = "ok", "no_boxes", "decode_error"
_SUCCEEDED, _FAILED = (_OK, _NO_BOXES), (_DECODE_ERROR,)
_BATCH = 16
_IMAGES_PER_PART = 512
_DECODE_SCALE = 2  # of the network's side: enough for a good reduction, several times faster than decoding whole


@dataclass(frozen=True, slots=True)
class BoxesResult:
    """Counts of `add_boxes` over all its calls.

    Attributes:
        images: of the collection. skipped: those with boxes of another source.
        status: "ok", "no_boxes" or "decode_error" -> images.
        stopped: by a signal; the same call resumes.
        unreachable: images that this call could not reach; the same call tries them again.
        away: whether the call ended early, because no image that was left could be reached.
        first_error: why the first image that cannot be read could not, of `unreachable` before others.
    """

    images: int
    skipped: int
    status: dict[str, int]
    boxes: int
    seconds: float
    stopped: bool
    unreachable: int = 0
    away: bool = False
    first_error: str = ""

    def find_failure(self) -> UserError | None:
        """Return the error that the command ends with: no image could be read, or some could not be reached."""
        return find_failure(
            self.images - self.skipped,
            succeeded=any(self.status.get(name) for name in _SUCCEEDED),
            failed={name: self.status[name] for name in _FAILED if name in self.status},
            unreachable=self.unreachable,
            first_error=self.first_error,
            stopped=self.stopped,
        )


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
    labeling = Labeling(Provenance(SOURCE, "nanodet-g", hash_recipe(recipe)), "regions", _SUCCEEDED, _FAILED)
    _remove_earlier(path, labeling.provenance.recipe_hash)
    # Opened after `_remove_earlier`, which takes the same writer lock of the collection.
    with AnnotationAppender(path, purpose="proposing boxes") as appender, Collection.open(path) as collection:
        progress = find_progress(path, labeling, collection.keys)
        # Images with an imported box are skipped: a second box by NanoDet would show the same animal twice.
        imported: set[int] = set()
        if not settings.every_image:
            regions = collection.grouped("regions")
            is_imported = np.array([source != SOURCE for source in regions.table["source"].to_pylist()], dtype=bool)
            imported = set(regions.row_numbers[is_imported].tolist())
        pending = [row for row, key in enumerate(collection.keys) if key not in progress.done and row not in imported]
        say_resumed(len(progress.done), len(collection))
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            propose = functools.partial(_propose, collection, proposer, pool)
            executor = in_batches(propose, pending, _BATCH, description="boxes")
            watch = CardWatch(collection.can_reach, pending)
            stopped = label_images(appender, executor, progress, images_per_part=_IMAGES_PER_PART, watch=watch)
        # The watch has tried all that were left.
        missed = len(pending) - progress.now.status.total() if watch.is_away else len(progress.now.unreachable)
        return BoxesResult(
            images=len(collection),
            skipped=len(imported),
            status=dict(progress.status),
            boxes=progress.before.rows + progress.now.rows,
            seconds=round(time.monotonic() - start, 2),
            stopped=stopped,
            unreachable=missed,
            away=watch.is_away,
            first_error=progress.first_error,
        )


def _remove_earlier(path: Path, recipe_hash: str) -> None:
    """Remove this detector's rows of other settings: beside new ones an image would have each box twice."""

    def select(part: pa.Table) -> NDArray[np.bool_]:
        columns = zip(part["source"].to_pylist(), part["recipe_hash"].to_pylist(), strict=True)
        return np.array([source == SOURCE and digest != recipe_hash for source, digest in columns], dtype=bool)

    for table in ("regions", "region_status"):
        remove_rows(path, table, select, purpose="replacing boxes")


def _propose(
    collection: Collection, proposer: NanoDetProposer, pool: ThreadPoolExecutor, rows: Sequence[int]
) -> Iterator[LabeledImage]:
    """Yield the boxes of a batch of images."""
    widths, heights = collection.index["width"], collection.index["height"]

    def load(row: int) -> NDArray[np.uint8] | BadImage:
        try:
            image = decode(collection.image_bytes(row), longest_side=_DECODE_SCALE * proposer.input_px)
        # Returned, because raising it would end the whole run for one damaged image.
        except BadImage as problem:
            return problem
        return proposer.to_square(image)

    squares = list(pool.map(load, rows))
    usable = [(row, square) for row, square in zip(rows, squares, strict=True) if not isinstance(square, BadImage)]
    sizes = [(int(widths[row]), int(heights[row])) for row, _ in usable]
    proposals = iter(proposer.propose([square for _, square in usable], sizes) if usable else ())
    for row, square in zip(rows, squares, strict=True):
        key = collection.keys[row]
        if isinstance(square, BadImage):
            yield LabeledImage(key, _DECODE_ERROR, detail=str(square), is_unreachable=square.is_passing)
            continue
        of_image = next(proposals)
        boxes = [
            region_row(key, Region(Box.from_array(box), CATEGORY, float(score), label=CATEGORY, source=SOURCE))
            for box, score in zip(of_image.boxes_K4, of_image.scores_K, strict=True)
        ]
        yield LabeledImage(key, _OK if boxes else _NO_BOXES, thin=of_image.thin, rows=boxes)
