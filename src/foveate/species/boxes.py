"""Offline boxes for images that have none: NanoDet-g proposes, Lite0 looks at each box, a killed run goes on.

An image that cannot be reached, because its card or disk is away, gets no row: the same command tries it again.

NanoDet-g was trained on COCO and is no MegaDetector: its best box was a stone, a burrow or the logo of the info strip
on a third of 27 real scenes, and it called a jaguar a giraffe. So its class names of animals are not used. A box is
scored by how sure NanoDet is of some object *and* by how probable ImageNet's animals are in a crop with context, and
boxes of info strips are left out (`python -m benchmarks.species_triage` measures both).
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
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from foveate.core.devices import choose_device
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
from foveate.records.rows import region_row
from foveate.records.tables import Provenance
from foveate.species.crops import NANODET, crop_view, find_strips, is_in_strip
from foveate.species.settings import BoxSettings
from foveate.vision.bridge import BridgeEncoder
from foveate.vision.detectors import CLASS_NAMES, NanoDetProposer, Proposals, ProposalSettings

NOTICE = (
    "boxes by NanoDet-g, a detector of everyday objects, not a MegaDetector: it misses animals and boxes stones; "
    "import MegaDetector's results where you have them (foveate collect --results)"
)
# NanoDet knows few kinds of animals, and its names of them are wrong on camera-trap images.
CATEGORY = "object"
_KIND_OF_CLASS = {"person": "human"} | dict.fromkeys(
    ("bicycle", "car", "motorcycle", "bus", "train", "truck"), "vehicle"
)
# Below it, dark animals, tree trunks and stones are called persons, too.
_MIN_OTHER_SCORE = 0.5
# The first classes of ImageNet, from the tench to the puffer fish, are animals.
NUM_ANIMAL_CLASSES = 398
# A box is proposed at a low score of NanoDet, because its crop decides.
_MIN_PROPOSAL_SCORE = 0.05
# Added to each side of a box before the classifier sees it, in the longer side: animals in tight crops of dark frames
# are taken for things, and so are parts of animals.
_CONTEXT = 0.5
# Share of a score that needs no animal in the crop, since many animals are none of ImageNet's.
_OBJECT_SHARE = 0.1
_SCORING_VERSION = 2
SOURCE = NANODET
_OK, _NO_BOXES, DECODE_ERROR = "ok", "no_boxes", "decode_error"
_SUCCEEDED, _FAILED = (_OK, _NO_BOXES), (DECODE_ERROR,)
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
    proposer = AnimalProposer(settings, device=device)
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


@dataclass(frozen=True, slots=True)
class ScoredBoxes:
    """Boxes of one image, best first.

    Attributes:
        boxes_K4: x1, y1, x2, y2 in [0, 1] of the image.
        scores_K: in [0, 1]: of an animal see `score_boxes`; of a person or vehicle NanoDet's.
        labels_K: `CATEGORY`, "human" or "vehicle".
        thin: boxes dropped because they were less than a pixel wide.
    """

    boxes_K4: NDArray[np.float64]
    scores_K: NDArray[np.float64]
    labels_K: tuple[str, ...]
    thin: int = 0


def score_boxes(objects_K: ArrayLike, animals_K: ArrayLike) -> NDArray[np.float64]:
    """Return the scores [K] of boxes as ones of animals, in [0, 1].

    A root, because NanoDet's scores of animals at night are low, while those of crops are not.

    Args:
        objects_K: NanoDet's scores. animals_K: sum of the probabilities of ImageNet's animals in the crop with context.
    """
    objects, animals = np.asarray(objects_K, dtype=np.float64), np.asarray(animals_K, dtype=np.float64)
    return np.sqrt(objects) * (_OBJECT_SHARE + (1 - _OBJECT_SHARE) * animals)


class AnimalProposer:
    """Propose boxes of animals, people and vehicles on camera-trap images.

    Raises:
        UserError: the shipped weights are damaged.
    """

    def __init__(self, settings: BoxSettings, *, device: str | None = None) -> None:
        self.settings = settings
        proposals = ProposalSettings(threshold=_MIN_PROPOSAL_SCORE, max_boxes=settings.max_boxes)
        self._proposer = NanoDetProposer(proposals, device=device)
        self._classifier = BridgeEncoder()
        self._device = choose_device(device or "auto")
        self.version = f"{self._proposer.version}-{_SCORING_VERSION}"

    def load(self, data: bytes) -> tuple[Image.Image, NDArray[np.uint8]]:
        """Decode an image as far as it is looked at, and fit it to NanoDet's square: apart, for threads that decode.

        Raises:
            BadImage: it cannot be read.
        """
        image = decode(data, longest_side=_DECODE_SCALE * self._proposer.input_px).convert("RGB")
        return image, self._proposer.to_square(image)

    def propose(
        self, loaded: Sequence[tuple[Image.Image, NDArray[np.uint8]]], sizes: Sequence[tuple[int, int]]
    ) -> list[ScoredBoxes]:
        """Return the boxes of images that `load` has read.

        Args:
            sizes: width and height of each original in pixels.
        """
        if not loaded:
            return []
        proposals = self._proposer.propose([square for _, square in loaded], sizes)
        return [self._score(image, found) for (image, _), found in zip(loaded, proposals, strict=True)]

    def _score(self, image: Image.Image, proposals: Proposals) -> ScoredBoxes:
        strips = find_strips(np.asarray(image.convert("L"))[None], min_frames=1)
        valid_K = ~is_in_strip(proposals.boxes_K4, strips)
        boxes_K4, objects_K = proposals.boxes_K4[valid_K], proposals.scores_K[valid_K]
        if not len(boxes_K4):
            return ScoredBoxes(boxes_K4, objects_K, (), proposals.thin)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(self._device)
        views_K4 = [
            crop_view(box, width=image.width, height=image.height, margin=_CONTEXT).crop or Box(0, 0, 1, 1)
            for box in boxes_K4
        ]
        corners_K4 = torch.tensor([[view.x1, view.y1, view.x2, view.y2] for view in views_K4])
        with torch.inference_mode():
            probabilities_KC = self._classifier.classify_crops(pixels, corners_K4)
        animals_K = probabilities_KC[:, :NUM_ANIMAL_CLASSES].sum(dim=1).double().cpu().numpy()
        scores_K = score_boxes(objects_K, animals_K)
        kinds = [_KIND_OF_CLASS.get(CLASS_NAMES[index], "") for index in proposals.classes_K[valid_K].tolist()]
        # An ape is a person to NanoDet, and an animal to ImageNet.
        is_other_K = np.array([bool(kind) for kind in kinds]) & (objects_K >= _MIN_OTHER_SCORE) & (animals_K < 0.5)
        scores_K = np.where(is_other_K, objects_K, scores_K)
        order = np.argsort(-scores_K, kind="stable")
        order = order[scores_K[order] > self.settings.threshold]
        labels = tuple(kinds[index] if is_other_K[index] else CATEGORY for index in order.tolist())
        return ScoredBoxes(boxes_K4[order], scores_K[order], labels, proposals.thin)


def _propose(
    collection: Collection, proposer: AnimalProposer, pool: ThreadPoolExecutor, rows: Sequence[int]
) -> Iterator[LabeledImage]:
    """Yield the boxes of a batch of images."""
    widths, heights = collection.index["width"], collection.index["height"]

    def load(row: int) -> tuple[Image.Image, NDArray[np.uint8]] | BadImage:
        try:
            return proposer.load(collection.image_bytes(row))
        # Returned, because raising it would end the whole run for one damaged image.
        except BadImage as problem:
            return problem

    images = list(pool.map(load, rows))
    usable = [(row, image) for row, image in zip(rows, images, strict=True) if not isinstance(image, BadImage)]
    sizes = [(int(widths[row]), int(heights[row])) for row, _ in usable]
    scored = iter(proposer.propose([image for _, image in usable], sizes))
    for row, image in zip(rows, images, strict=True):
        key = collection.keys[row]
        if isinstance(image, BadImage):
            yield LabeledImage(key, DECODE_ERROR, detail=str(image), is_unreachable=image.is_passing)
            continue
        of_image = next(scored)
        boxes = [
            region_row(key, Region(Box.from_array(box), label, float(score), label=label, source=SOURCE))
            for box, score, label in zip(of_image.boxes_K4, of_image.scores_K, of_image.labels_K, strict=True)
        ]
        yield LabeledImage(key, _OK if boxes else _NO_BOXES, thin=of_image.thin, rows=boxes)
