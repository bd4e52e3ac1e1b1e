"""Label a collection with a model: dense detection as regions, dense detection and referring as conversations.

Rows name model and settings by one hash. A row of `region_status` says that an image is finished, and is written last:
a kill loses at most one part, and the same call does what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from foveate.chat.batching import run_in_halves
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.mllm.dense import DETECT_PROMPTS, GROUP, REFER_PROMPTS, list_boxes, number
from foveate.records.appender import AnnotationAppender
from foveate.records.boxes import Box, PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, conversation_row
from foveate.records.images import BadImage, decode
from foveate.records.labeling import (
    LabeledImage,
    Labeling,
    find_failure,
    find_progress,
    find_unfinished,
    hash_recipe,
    in_batches,
    label_images,
    say_resumed,
)
from foveate.records.region_sources import OWN_SOURCES, RegionSources, SelectedRegions, model_label_source
from foveate.records.shapes import Shape
from foveate.records.tables import Provenance

_DONE, _CUT, _UNREADABLE, _REFUSED = "done", "cut", "unreadable", "refused"
_IMAGES_PER_PART = 256
# Up to three digits: a question has at most 100 regions.
_NUMBERED = re.compile(r"(?:^|\s)(\d{1,3})\. ")


class LabelSettings(Settings):
    """What `foveate mllm label` asks, and of which images.

    Example:
        >>> LabelSettings(labels="conversations", limit=100).batch_size
        8
    """

    labels: Literal["regions", "conversations"] = Field(
        "regions",
        description="regions: names and boxes of all things; conversations: these as an answer, and names of regions",
    )
    split: str | None = Field(None, description="only images of this split")
    limit: int | None = Field(None, ge=1, description="only this many images, the first ones")
    sources: RegionSources = (OWN_SOURCES,)
    objects: int = Field(10, ge=1, le=100, description="maximum number of regions in a question")
    max_tokens: int = Field(512, ge=1, le=8192, description="longest answer")
    batch_size: int = Field(8, ge=1, le=1024, description="images asked about together")


class LabelModel(Protocol):
    """Model that labels: `Mllm`, or a model of transformers."""

    def ask_all(self, questions: Sequence[tuple[Any, ...]], *, max_tokens: int) -> Sequence[Any]:
        """Answer (images, question, regions)."""
        ...


class LabelCounts(BaseModel):
    """What `label_collection` did.

    Attributes:
        source, recipe_hash: of the rows. images: selected ones, `done_before` of them in an earlier run.
        rows: new regions or conversations. status: images of this run by status.
        left_out: boxes without a name, and the like.
        succeeded: images with an answer, of all runs of the recipe.
        unreachable: images that this run could not reach, `unreadable` ones among others; the same call tries them
            again.
        first_error: why the first image without an answer has none, of `unreachable` before others.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    recipe_hash: str
    images: int
    done_before: int
    rows: int = 0
    status: dict[str, int] = {}
    left_out: dict[str, int] = {}
    stopped: bool = False
    succeeded: int = 0
    unreachable: int = 0
    first_error: str = ""

    def find_failure(self) -> UserError | None:
        """Return the error that the command ends with: no image has an answer, or some could not be reached."""
        unreadable = self.status.get(_UNREADABLE, 0)
        # Over all runs of the recipe: a repeated one may have nothing left to ask.
        failed = {_UNREADABLE: unreadable, _REFUSED: self.images - self.succeeded - unreadable}
        return find_failure(
            self.images,
            succeeded=self.succeeded > 0,
            failed={name: count for name, count in failed.items() if count},
            unreachable=self.unreachable,
            first_error=self.first_error,
            stopped=self.stopped,
        )


def label_collection(
    path: Path,
    model: LabelModel,
    settings: LabelSettings,
    *,
    name: str,
    sha256: str,
    images_per_part: int = _IMAGES_PER_PART,
) -> LabelCounts:
    """Label the images of a collection; the same call again does what is missing.

    Args:
        name: of the model, for the column `source`. sha256: of what decides its answers.
        images_per_part: how many images a kill costs at most.

    Raises:
        UserError: another process writes the collection, or it has no such split or source.

    Example:
        >>> model, settings = open_mllm("mini"), LabelSettings(limit=2)
        >>> label_collection(collection_copy, model, settings, name="mini", sha256="of its weights").images
        2
    """
    # Other images are labeled by the same recipe, and the size of a batch moves only the last bits of answers.
    content = settings.model_dump(mode="json", exclude={"split", "limit", "batch_size"})
    # Regions depend on fewer settings: others must not have every image labeled again.
    if settings.labels == "regions":
        content = {"labels": "regions", "max_tokens": settings.max_tokens}
    recipe_hash = hash_recipe([content, sha256, DETECT_PROMPTS[0], REFER_PROMPTS[0]])
    source = model_label_source(name)
    labeling = Labeling(
        Provenance(source, f"{name}@{sha256[:16]}", recipe_hash),
        settings.labels,
        succeeded=(_DONE, _CUT),
        failed=(_UNREADABLE, _REFUSED),
        repeated=(_UNREADABLE,),  # its disk may be back
        counts=(),
    )
    with AnnotationAppender(path, purpose="labeling") as appender, Collection.open(path) as collection:
        rows = (collection.rows(settings.split) if settings.split else range(len(collection.keys)))[: settings.limit]
        keys = {collection.keys[row]: int(row) for row in rows}
        progress = find_progress(path, labeling, keys)
        pending = {key: row for key, row in keys.items() if key not in progress.done}
        say_resumed(len(progress.done), len(keys))
        selected = None
        if settings.labels == "conversations":
            selected = SelectedRegions(collection, settings.sources or (OWN_SOURCES,), where="--region-source")
        # An image with rows and no status is asked about again for the status alone: rows do not tell whether its
        # answer was cut.
        unfinished = find_unfinished(path, labeling, pending)

        def label_batch(batch: Sequence[int]) -> Iterator[LabeledImage]:
            for image in _label_batch(collection, model, settings, selected, source, batch):
                before = unfinished[image.key]
                is_adopted = before and image.status != _UNREADABLE
                yield replace(image, rows=[], before=before) if is_adopted else image

        executor = in_batches(label_batch, [*pending.values()], settings.batch_size, description="labeling")
        stopped = label_images(appender, executor, progress, images_per_part=images_per_part)
    return LabelCounts(
        source=source,
        recipe_hash=recipe_hash,
        images=len(keys),
        done_before=len(progress.done),
        rows=progress.now.rows,
        status=dict(progress.now.status),
        left_out=dict(progress.now.left_out),
        stopped=stopped,
        succeeded=progress.num_succeeded,
        unreachable=len(progress.now.unreachable),
        first_error=progress.first_error,
    )


def _label_batch(
    collection: Collection,
    model: LabelModel,
    settings: LabelSettings,
    selected: SelectedRegions | None,
    source: str,
    rows: Sequence[int],
) -> Iterator[LabeledImage]:
    """Label some images, whose questions are asked together."""
    batch: list[tuple[str, tuple[int, int], list[Ask]]] = []
    kind = f"mllm {settings.labels}"
    for row in rows:
        key = collection.keys[row]
        try:
            data = collection.image_bytes(row)
            # Decoded in full, so that a truncated file counts as unreadable, which the next run tries again.
            size = decode(data).size
        except BadImage as problem:
            yield LabeledImage(key, _UNREADABLE, kind, detail=str(problem), is_unreachable=problem.is_passing)
            continue
        regions = selected.read(row) if selected is not None else []
        batch.append((key, size, _ask(data, [region.box.to_pixels(*size) for region in regions], settings.objects)))
    answers = iter(
        run_in_halves(
            lambda part: model.ask_all(part, max_tokens=settings.max_tokens),
            [question for _, _, questions in batch for question in questions],
            errors=UserError,
        )
    )
    for key, size, questions in batch:
        replies = [next(answers) for _ in questions]
        if settings.labels == "regions":
            labeled = _read_regions(key, size, replies[0])
        else:
            labeled = _read_conversations(key, questions, replies, source)
        yield replace(labeled, kind=kind)


Ask = tuple[bytes, str, Sequence[Shape]]


def _ask(data: bytes, boxes: Sequence[PixelBox], objects: int) -> list[Ask]:
    """Ask for all things of an image, and for the names of its regions in parts."""
    # Always the first wording, which the recipe's hash includes: one recipe never asks in two ways.
    questions: list[Ask] = [(data, DETECT_PROMPTS[0], ())]
    for start in range(0, len(boxes), objects):
        part = boxes[start : start + objects]
        questions.append((data, f"{REFER_PROMPTS[0]} {number([REGION] * len(part))}", tuple(part)))
    return questions


def _read_regions(key: str, size: tuple[int, int], answer: Any) -> LabeledImage:
    """Return the rows of the boxes that have a name; the same name and box is one row."""
    if isinstance(answer, UserError):
        return LabeledImage(key, _REFUSED, detail=str(answer))
    labeled, (width, height) = LabeledImage(key, _DONE if answer.finished else _CUT), size
    if answer.rejected:
        labeled.left_out["boxes below the model's min_box_score"] += len(answer.rejected)
    for phrase, pixels in dict.fromkeys(zip(answer.phrases, answer.boxes, strict=True)):
        if not phrase:
            labeled.left_out["boxes without a name"] += 1
            continue
        try:
            box = Box.from_pixels(pixels, width, height)
        except UserError:
            labeled.left_out["boxes outside their image"] += 1
            continue
        corners = {"x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2}
        labeled.rows.append({"key": key, **corners, "phrase": phrase, "label": phrase})
    return labeled


def _read_conversations(key: str, questions: Sequence[Ask], answers: Sequence[Any], source: str) -> LabeledImage:
    """Return the conversations of answers that say what was asked; others are counted."""
    labeled = LabeledImage(key, _DONE)
    if all(isinstance(answer, UserError) for answer in answers):
        labeled.status, labeled.detail = _REFUSED, str(answers[0])
    for position, ((_, question, regions), answer) in enumerate(zip(questions, answers, strict=True)):
        kind = "referring" if regions else "detection"
        if isinstance(answer, UserError):
            labeled.left_out[f"{kind} refused"] += 1
            continue
        turns = _write_names(answer, regions) if regions else _write_boxes(answer)
        # A cut answer would be learned with an end mark, as if it were whole.
        if turns is None or not answer.finished:
            labeled.left_out[f"{kind} not readable"] += 1
            continue
        request = Turn("user", f"{IMAGE}\n{question}", tuple(regions))
        conversation = Conversation(f"labeled {kind}/{key}/{position}", (key,), (request, turns), GROUP, source)
        labeled.rows.append(conversation_row(conversation))
    return labeled


def _write_names(answer: Any, regions: Sequence[Shape]) -> Turn | None:
    """Return the answer if it names each region by its number, else None."""
    listed = [int(digits) for digits in _NUMBERED.findall(answer.text)]
    # Split at the numbers: the text before the first, then number and name in turn.
    names = [part.strip() for part in _NUMBERED.split(answer.text)[2::2]]
    if listed != list(range(1, len(regions) + 1)) or not all(names):
        return None
    return Turn("assistant", number(names))


def _write_boxes(answer: Any) -> Turn | None:
    pairs = [(name, box) for name, box in dict.fromkeys(zip(answer.phrases, answer.boxes, strict=True)) if name]
    return list_boxes(pairs) if pairs else None
