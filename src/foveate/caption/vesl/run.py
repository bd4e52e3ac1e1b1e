"""Label regions of a collection: caption -> phrases -> detection -> rows, with a status for every image.

Rows are written in parts, regions before statuses; a kill loses at most one part. The same command resumes with the
images that have no status of its recipe, and with those that it failed on.
"""

from __future__ import annotations

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from foveate.caption.results import RegionsResult
from foveate.caption.settings import REGION_BATCH, RegionLabelSettings, RegionRunSettings
from foveate.caption.vesl.detection import Detections, Detector, DetectorInput, DetectorKind, find_detector
from foveate.caption.vesl.tagging import Extractor, open_extractor
from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.core.recipes import Settings, validate
from foveate.core.version import code_revision
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box
from foveate.records.captions import find_wrong_captioners, load_current_captions
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.labeling import (
    LabeledImage,
    Labeling,
    Progress,
    find_progress,
    find_unfinished,
    hash_recipe,
    label_images,
    say_resumed,
)
from foveate.records.ray_work import ExecutorSettings, share_work
from foveate.records.record import Region
from foveate.records.region_sources import pseudo_label_source
from foveate.records.rows import region_row
from foveate.records.tables import GroupedTable, Provenance

# What a kill costs at most.
_IMAGES_PER_PART = 1024
# Images are decoded to this many times the detector's input: JPEG decoding at a reduced size is several times faster,
# and twice the input leaves enough for a good bicubic reduction.
_DECODE_SCALE = 2
# What libraries raise at one image that they cannot process. Others (a full disk, KeyboardInterrupt) end the run.
_IMAGE_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, MemoryError)
# Version of the steps themselves: raised when the same settings give other rows.
STEPS = "vesl-1"
OK, NO_CAPTION, NO_PHRASES, NO_BOXES, DECODE_ERROR, DETECTOR_ERROR = STATUSES = (
    "ok",
    "no_caption",
    "no_phrases",
    "no_boxes",
    "decode_error",
    "detector_error",
)
# Statuses of images that the next run tries again: the disk may be back by then, or the GPU free.
FAILED = (DECODE_ERROR, DETECTOR_ERROR)


def build_recipe(
    settings: RegionLabelSettings, extractor: Extractor, detector: Detector, detector_settings: Settings
) -> dict[str, Any]:
    """Collect all that decides which rows come out, as JSON values."""
    return {
        "steps": STEPS,
        **settings.model_dump(mode="json"),
        "tagger": {"name": extractor.name, "version": extractor.version},
        "detector": {
            "name": detector.name,
            "version": detector.version,
            "input_px": detector.input_px,
            # Leave out the path of the model: a moved folder gives the same rows. `version` has the hash of its
            # weights.
            "settings": {k: v for k, v in detector_settings.model_dump(mode="json").items() if k != "model"},
        },
    }


@dataclass(frozen=True, slots=True)
class ImageCaptions:
    """Captions of an image of the one kind that is used; kind "" if it has none."""

    kind: str = ""
    texts: tuple[str, ...] = ()


class CaptionSource:
    """Current captions of a collection by row.

    Attributes:
        wrong: verdicts by which captions of a kind and model come after all others; none where `settings.captions` was
            set by the user.

    Raises:
        UserError: the collection has no caption of any of the kinds in `settings.captions`.
    """

    def __init__(self, collection: Collection, settings: RegionLabelSettings) -> None:
        self.kinds = settings.captions
        captions = load_current_captions(collection, prefer=settings.prefer)
        available = sorted(captions["kind"].unique().to_pylist())
        if not set(available) & set(self.kinds):
            hint = nearest(self.kinds[0], available)
            raise UserError(
                f"collection '{collection.name}': no caption of the kinds {', '.join(self.kinds)} (it has: "
                f"{', '.join(available) or 'none'}){hint}; `foveate caption` writes dsc"
            )
        # Verdicts reorder only the default: an order that the user set is kept.
        is_default = "captions" not in settings.model_fields_set
        self.wrong = find_wrong_captioners(collection, self.kinds) if is_default and "alt" in available else []
        self._wrong = {(verdict.kind, verdict.model) for verdict in self.wrong}
        self._grouped = GroupedTable(captions, pa.chunked_array([pa.array(collection.keys, pa.string())]))

    def get(self, row: int) -> ImageCaptions:
        """Return the captions of the first kind in `settings.captions` that the image has."""
        bounds = self._grouped.bounds(row)
        by_kind: dict[tuple[bool, str], list[str]] = {}
        columns = (self._grouped.texts(name, *bounds) for name in ("kind", "model", "text"))
        for kind, model, text in zip(*columns, strict=True):
            if text.strip():
                by_kind.setdefault(((kind, model) in self._wrong, kind), []).append(text)
        ordered = [(is_wrong, kind) for is_wrong in (False, True) for kind in self.kinds]
        first = next((key for key in ordered if key in by_kind), (False, ""))
        return ImageCaptions(first[1], tuple(by_kind.get(first, ())))


def shuffle_partners(rows: Sequence[int] | NDArray[np.int64], seed: int) -> dict[int, int]:
    """Assign every row another one: each is the partner of one, none its own (for two or more).

    The control `shuffle_phrases` gives an image the phrases of its partner. Other rows have other partners.
    """
    order = seeds.generator("shuffled phrases", seed).permutation(np.asarray(rows))
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class LabelingPlan:
    """All that a labeling run works with.

    Attributes:
        recipe: all that decides which rows come out.
        partners: row -> row whose phrases it gets, in the control `shuffle_phrases`.
        rows: of the collection, those of the split.
        progress: what this recipe has labeled already.
        pending: rows that are left.
        unfinished: key -> regions of pending images, which a killed run wrote without their status.
    """

    collection: Collection
    settings: RegionLabelSettings
    kind: DetectorKind
    detector: Detector
    extractor: Extractor
    captions: CaptionSource
    recipe: dict[str, Any]
    partners: dict[int, int]
    rows: list[int]
    progress: Progress
    pending: list[int]
    unfinished: Counter[str]

    @property
    def recipe_hash(self) -> str:
        """The hash of the recipe, which every row carries."""
        return self.progress.labeling.provenance.recipe_hash


@dataclass(frozen=True, slots=True)
class _Query:
    """An image row with its captions and phrases, ready for the detector."""

    row: int
    captions: ImageCaptions
    phrases: list[str]


@dataclass(frozen=True, slots=True)
class LabelingRun:
    """A finished run.

    Attributes:
        rows: of the collection, those that the run was about.
        failure: set if images were examined and none could be, or if some could not be reached.
    """

    result: RegionsResult
    rows: list[int]
    failure: UserError | None = None


class PlanOptions(TypedDict, total=False):
    """Arguments of `plan_labeling`."""

    detector: Required[str]
    detector_settings: Required[Settings]
    split: str | None
    limit: int | None
    device: str | None
    seed: int


def plan_labeling(
    collection: Collection,
    settings: RegionLabelSettings,
    *,
    detector: str,
    detector_settings: Settings,
    split: str | None = None,
    limit: int | None = None,
    device: str | None = None,
    seed: int = 0,
) -> LabelingPlan:
    """Open captions, tagger and detector, and find the images that are left.

    Args:
        split: only its images; None for all.
        limit: only the first so many.
        seed: of the control `shuffle_phrases`.

    Raises:
        UserError: a tagger or detector cannot be opened, or no caption is of a kind in `settings.captions`.
    """
    # A limit below 0 would count from the end of the split.
    validate(RegionRunSettings, {"detector": detector, "split": split, "limit": limit}, where="foveate regions")
    # The first of the split, not a sample: a larger limit then continues where a smaller one ended (but for the control
    # `shuffle_phrases`, see below).
    rows = [int(row) for row in collection.rows(split)][:limit]
    kind = find_detector(detector)
    captions, extractor = CaptionSource(collection, settings), open_extractor(settings.phrases)
    opened = kind.open(detector_settings, collection, device)
    recipe = build_recipe(settings, extractor, opened, detector_settings)
    if captions.wrong:
        # Other captions give other rows, so the captioners that are left out belong to the recipe.
        recipe["wrong_captioners"] = sorted({f"{verdict.kind} {verdict.model}" for verdict in captions.wrong})
        for verdict in captions.wrong:
            say(f"alt-texts come first, for captions are wrong (--captions overrides): {verdict.describe()}")
    if settings.shuffle_phrases:
        # They decide the partners of the control only: elsewhere they change no row, and must not change the hash.
        recipe |= {"seed": seed, "split": split, "limit": limit}
    partners = shuffle_partners(rows, seed) if settings.shuffle_phrases else {}
    labeling = Labeling(
        Provenance(pseudo_label_source(opened.name), opened.model, hash_recipe(recipe)),
        "regions",
        succeeded=(OK, NO_BOXES),
        failed=FAILED,
        repeated=FAILED,
    )
    keys = {collection.keys[row]: row for row in rows}
    progress = find_progress(collection.path, labeling, keys)
    # An image that had no caption may have one now.
    bare = [key for key, status in progress.done.items() if status == NO_CAPTION]
    progress.try_again([key for key in bare if captions.get(partners.get(keys[key], keys[key])).texts])
    pending = {key: row for key, row in keys.items() if key not in progress.done}
    return LabelingPlan(
        collection=collection,
        settings=settings,
        kind=kind,
        detector=opened,
        extractor=extractor,
        captions=captions,
        recipe=recipe,
        partners=partners,
        rows=rows,
        progress=progress,
        pending=[*pending.values()],
        unfinished=find_unfinished(collection.path, labeling, pending),
    )


def extract_phrases(plan: LabelingPlan, row: int) -> tuple[ImageCaptions, list[str]]:
    """Return captions and phrases of an image; in the control those of its partner."""
    captions = plan.captions.get(plan.partners.get(row, row))
    settings = plan.settings.phrases
    phrases: list[str] = []
    for text in captions.texts:
        # The clean recipe drops duplicates within a caption, here over several captions as well.
        phrases += [
            phrase for phrase in plan.extractor(text).phrases if settings.recipe == "paper" or phrase not in phrases
        ]
    return captions, phrases[: settings.max_phrases]


def label_regions(
    path: Path,
    settings: RegionLabelSettings,
    *,
    batch: int = REGION_BATCH,
    workers: int = 2,
    work: ExecutorSettings | None = None,
    **options: Unpack[PlanOptions],
) -> LabelingRun:
    """Label regions of a collection's images; the same call again resumes.

    Args:
        path: of the collection.
        batch: images per pass of the detector.
        workers: threads that decode images.
        work: where images are labeled: by default in this process.
        options: see `plan_labeling`.

    Raises:
        UserError: another process writes the collection, or see `plan_labeling`.

    Example:
        >>> oracle = find_detector("annotations")  # boxes that exist; "nanodet" and "owlv2" look for them
        >>> settings = {"detector": "annotations", "detector_settings": oracle.settings()}
        >>> run = label_regions(collection_copy, RegionLabelSettings(captions=("alt",)), **settings)
        >>> run.result.regions > 0
        True
    """
    began = time.monotonic()
    validate(RegionRunSettings, {"batch": batch}, where="foveate regions")
    # The lock comes first: the pending images must not change before their rows are written.
    with AnnotationAppender(path, purpose="labeling regions") as appender, Collection.open(path) as collection:
        plan = plan_labeling(collection, settings, **options)
        progress = plan.progress
        say_resumed(len(progress.done), len(plan.rows))
        with ThreadPoolExecutor(max(1, workers)) as pool:
            executor = share_work(
                functools.partial(_label_batch, plan, pool),
                functools.partial(_open_labeler, path, settings, workers, options),
                [plan.pending[start : start + batch] for start in range(0, len(plan.pending), batch)],
                work or ExecutorSettings(),
                description=f"labeling, {batch} images at a time",
            )
            stopped = label_images(appender, executor, progress, images_per_part=_IMAGES_PER_PART)
    new_regions = progress.now.rows + progress.now.recovered
    result = RegionsResult(
        collection=collection.name,
        split=options.get("split"),
        detector=plan.detector.name,
        oracle=plan.kind.oracle,
        model=plan.detector.model,
        source=pseudo_label_source(plan.detector.name),
        recipe=plan.recipe,
        recipe_hash=plan.recipe_hash,
        images=len(plan.rows),
        done_before=len(progress.done),
        status={name: progress.status[name] for name in STATUSES},
        regions=progress.before.rows + new_regions,
        thin=progress.before.thin + progress.now.thin,
        regions_new=new_regions,
        seconds=round(time.monotonic() - began, 2),
        stopped=stopped,
        code=code_revision(),
    )
    failure = progress.find_failure(len(plan.rows), stopped=stopped, subject=collection.name)
    return LabelingRun(result, plan.rows, failure)


def estimate_labeling(
    path: Path,
    settings: RegionLabelSettings,
    *,
    max_examined: int = 1000,
    **options: Unpack[PlanOptions],
) -> dict[str, Any]:
    """Estimate a run from the phrases of the first `max_examined` images; nothing is detected or written."""
    with Collection.open(path) as collection:
        plan = plan_labeling(collection, settings, **options)
        examined = [extract_phrases(plan, row) for row in plan.pending[:max_examined]]
    # Images without phrases never reach the detector, so they do not count in its mean.
    counts = [len(phrases) for _, phrases in examined if phrases]
    return {
        "detector": plan.detector.name,
        "oracle": plan.kind.oracle,
        "model": plan.detector.model,
        "recipe_hash": plan.recipe_hash,
        "images": len(plan.rows),
        "pending": len(plan.pending),
        "examined": len(examined),
        "captions": dict(Counter(captions.kind or "none" for captions, _ in examined)),
        "with_phrases": len(counts),
        "phrases_per_image": round(float(np.mean(counts)), 2) if counts else 0.0,
        "examples": [
            {"text": " ".join(captions.texts)[:200], "phrases": phrases} for captions, phrases in examined[:3]
        ],
    }


def _open_labeler(
    path: Path, settings: RegionLabelSettings, workers: int, options: PlanOptions
) -> Callable[[Sequence[int]], Iterator[LabeledImage]]:
    """Open collection and detector in a process of its own; return what labels a batch there."""
    plan = plan_labeling(Collection.open(path), settings, **options)
    return functools.partial(_label_batch, plan, ThreadPoolExecutor(max(1, workers)))


def _label_batch(plan: LabelingPlan, pool: ThreadPoolExecutor, rows: Sequence[int]) -> Iterator[LabeledImage]:
    """Label one batch, in order."""
    labeled: dict[int, LabeledImage] = {}
    queries: list[_Query] = []
    for row in rows:
        key = plan.collection.keys[row]
        captions, phrases = extract_phrases(plan, row)
        if not captions.texts:
            labeled[row] = LabeledImage(key, NO_CAPTION)
        elif not phrases:
            labeled[row] = LabeledImage(key, NO_PHRASES, captions.kind)
        elif before := plan.unfinished[key]:  # killed between its regions and its status
            labeled[row] = LabeledImage(key, OK, captions.kind, len(phrases), before=before)
        else:
            queries.append(_Query(row, captions, phrases))
    # Only images that have phrases are decoded, which takes longer than tagging.
    inputs = list(pool.map(lambda query: _load_input(plan, query.row), queries))
    ready: list[tuple[DetectorInput, _Query]] = []
    for query, image in zip(queries, inputs, strict=True):
        if isinstance(image, DetectorInput):
            ready.append((image, query))
        else:
            key, kind = plan.collection.keys[query.row], query.captions.kind
            labeled[query.row] = LabeledImage(
                key, DECODE_ERROR, kind, len(query.phrases), detail=str(image), is_unreachable=image.is_passing
            )
    for (image, query), detections in zip(ready, _detect(plan, ready), strict=True):
        labeled[image.row] = _to_rows(plan, image, query, detections)
    # In the order of the rows, whichever step decided about an image.
    yield from (labeled[row] for row in rows)


def _load_input(plan: LabelingPlan, row: int) -> DetectorInput | BadImage:
    """Decode an image for the detector; return the error if it cannot be read."""
    index = plan.collection.index
    width, height, key = int(index["width"][row]), int(index["height"][row]), plan.collection.keys[row]
    if not plan.kind.reads_pixels:
        return DetectorInput(row, key, None, width, height)
    side = _DECODE_SCALE * max(1, plan.detector.input_px)
    try:
        image = decode(plan.collection.image_bytes(row), longest_side=side)
    except BadImage as problem:
        return problem
    return DetectorInput(row, key, image, width, height)


def _detect(plan: LabelingPlan, ready: Sequence[tuple[DetectorInput, _Query]]) -> list[Detections | str]:
    """Run the detector; return an error message for images that it fails on.

    If it fails on a batch, it runs on each image alone, so that one bad image costs no other its labels.
    """
    if not ready:
        return []
    try:
        return list(plan.detector.detect([image for image, _ in ready], [query.phrases for _, query in ready]))
    except _IMAGE_FAILURES as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    # Outside of the handler, whose error keeps the failed batch in memory.
    if len(ready) == 1:
        return [reason]
    return [result for pair in ready for result in _detect(plan, [pair])]


def _to_rows(plan: LabelingPlan, image: DetectorInput, query: _Query, detections: Detections | str) -> LabeledImage:
    """Turn the detections of one image into rows of the table `regions`."""
    kind, num_phrases = query.captions.kind, len(query.phrases)
    if isinstance(detections, str):
        return LabeledImage(image.key, DETECTOR_ERROR, kind, num_phrases, detail=detections)
    rows = []
    for index in range(len(detections.boxes_K4)):
        region = Region(
            Box.from_array(detections.boxes_K4[index]),
            query.phrases[int(detections.phrase_K[index])],
            float(detections.scores_K[index]),
            source=pseudo_label_source(plan.detector.name),
        )
        details: dict[str, Any] = {
            "detector": plan.detector.name,
            "version": plan.detector.version,
            "input_px": plan.detector.input_px,
            "caption": kind,
            "tagger": plan.extractor.name,
            "phrases": plan.settings.phrases.recipe,
        }
        if detections.similarity_K is not None:
            details["similarity"] = round(float(detections.similarity_K[index]), 4)
        # In every row: boxes that the collection already held say nothing about a detector.
        if plan.kind.oracle:
            details["oracle"] = True
        if plan.partners:
            details["shuffled"] = True
        rows.append({**region_row(image.key, region), "details": json.dumps(details, sort_keys=True)})
    status = OK if rows else NO_BOXES
    return LabeledImage(image.key, status, kind, num_phrases, detections.thin, rows=rows)
