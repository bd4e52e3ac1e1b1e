"""Label a collection: pending images -> batches -> rows in resumable parts -> statuses -> tally -> exit status.

A verb that labels brings one function, from pending items to results, and its settings. Here it is repeated in batches
or streamed by an executor, stopped by a signal, counted, and ended with the exit status that all such verbs share.

A row of `region_status` says that an image is done, and is written after the labels of the image: a kill loses at most
one part. An image that could not be reached is never stored as done, so that the same command tries it again; a run
whose card was pulled out ends early (`CardWatch`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from foveate.core.errors import NothingSucceededError, UserError
from foveate.core.progress import say, track
from foveate.core.stopping import StopRequest
from foveate.records.annotate import (
    PartWriter,
    ResultWriter,
    Row,
    describe_unreachable,
    matching_parts,
    write_results,
    write_stream,
)
from foveate.records.appender import AnnotationAppender
from foveate.records.images import MIN_AWAY
from foveate.records.tables import Provenance

T = TypeVar("T")
R = TypeVar("R")

# A killed process loses the part it has not yet written, so slow models write theirs after this time, full or not.
SECONDS_PER_PART = 30.0
# Rows of earlier versions: they stored images whose card was away as images that cannot be decoded.
_DECODE_ERROR = "decode_error"
_AWAY = re.compile(
    r" is missing(: it was moved or deleted)?$| cannot be read: | is not a regular file any more$"
    r"| is not the imported image: its bytes changed$|\.tar ends within the image "
)

Stopping = Callable[[], bool]
"""Whether a signal has asked the run to end after the work that it is at."""

Executor = Callable[[Stopping], Iterable[R] | AsyncGenerator[Sequence[R], None]]
"""A way to work: starts no new work once `stopping()` is true. A stream also yields empty lists, as signs of life."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: `stopped` by a signal, or by an error after which it could not go on."""

    stopped: bool
    failure: UserError | None = None


class CardWatch:
    """Notice that the card or disk of a run is away: 8 images in a row, and all that are left, cannot be reached.

    A few files that were deleted, or a worn-out spot of a card, end no run: it goes on while any image can be read.

    Args:
        can_reach: whether the image of a row can be read now.
        pending: rows of the run, in its order.

    Attributes:
        is_away: whether the run should end.
    """

    def __init__(self, can_reach: Callable[[int], bool], pending: Sequence[int]) -> None:
        # From the end: what is found there stays pending, so that it is searched for only once.
        self._can_reach, self._rest = can_reach, list(pending)
        self._in_row, self.is_away = 0, False

    def note(self, is_unreachable: bool) -> None:
        """Count the next image of the run."""
        self._in_row = self._in_row + 1 if is_unreachable else 0
        if self._in_row == MIN_AWAY:
            self._in_row = 0
            while self._rest and not self._can_reach(self._rest[-1]):
                self._rest.pop()
            self.is_away = not self._rest


def execute(
    executor: Executor[R],
    writer: ResultWriter[R],
    *,
    stop: StopRequest | None = None,
    watch: CardWatch | None = None,
) -> Ending:
    """Write what an executor yields, until its end, a signal, or the error of a stream; results before are written.

    Args:
        stop: an entered one, of a caller with further work that a signal stops.
        watch: stops it, too, once the card is away; the writer tells it about images.
    """
    failure = None
    with StopRequest() if stop is None else contextlib.nullcontext(stop) as request:
        results = executor(lambda: request.signal_name is not None or (watch is not None and watch.is_away))
        if isinstance(results, AsyncGenerator):
            failure = asyncio.run(write_stream(results, writer))
        else:
            write_results(results, writer)
    return Ending(request.signal_name is not None, failure)


def in_order(function: Callable[[T], Iterable[R]], items: Sequence[T], *, description: str) -> Executor[R]:
    """Return the executor that calls a function with one item after the other.

    Args:
        description: of the work, for its progress: "labeling, 16 images at a time".
    """

    def run(stopping: Stopping) -> Iterator[R]:
        for item in track(items, description=description):
            yield from function(item)
            # Checked after the item: its results are computed already and go into the last part.
            if stopping():
                return

    return run


def in_batches(
    function: Callable[[Sequence[T]], Iterable[R]], pending: Sequence[T], size: int, *, description: str
) -> Executor[R]:
    """Return the executor that calls a function with `size` pending images at a time; see `in_order`."""
    return in_order(
        lambda start: function(pending[start : start + size]),
        range(0, len(pending), size),
        description=f"{description}, {size} images at a time",
    )


def hash_recipe(recipe: object) -> str:
    """Hash a recipe, of JSON values, to the 16 hexadecimal digits that every row carries."""
    # Keys are sorted, so that the order in which settings were given does not make another recipe.
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True)
class LabeledImage:
    """The result for one image.

    Attributes:
        rows: labels, of the table of the labeling.
        kind: of the captions that were used, or of the labels. phrases: number of its phrases.
        thin: boxes dropped as thinner than a pixel.
        detail: error message, "" without an error.
        left_out: reason -> labels that could not become rows.
        before: rows that a killed run wrote without the status of the image.
        is_unreachable: its file could not be read for now (`BadImage.is_passing`).
    """

    key: str
    status: str
    kind: str = ""
    phrases: int = 0
    thin: int = 0
    detail: str = ""
    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    before: int = 0
    is_unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Labeling:
    """What the rows of a labeling have in common.

    Attributes:
        provenance: of all rows; its recipe hash decides which rows of the collection are those of this labeling.
        table: of the labels.
        succeeded, failed: statuses of images that were examined, with success and without.
        repeated: statuses of `failed` that the same command tries again; images of the others are done.
        counts: further columns of `region_status` that are stored; they are part of the ids of its rows.
    """

    provenance: Provenance
    table: str
    succeeded: Collection[str]
    failed: Collection[str]
    repeated: Collection[str] = ()
    counts: Sequence[Literal["phrases", "thin"]] = ("phrases", "thin")

    def is_done(self, status: str, detail: str) -> bool:
        """Whether a stored status says that its image is done."""
        was_away = status == _DECODE_ERROR and _AWAY.search(detail) is not None
        return status not in self.repeated and not was_away

    def is_stored(self, image: LabeledImage) -> bool:
        """Whether an image gets a status: one that cannot be reached only if its status says that it is not done."""
        return not image.is_unreachable or image.status in self.repeated

    def split_rows(self, images: Sequence[LabeledImage]) -> dict[str, list[Row]]:
        """Return the rows of a part by table."""
        statuses: list[Row] = [
            {
                "key": image.key,
                "status": image.status,
                "kind": image.kind,
                "regions": len(image.rows) + image.before,
                "detail": image.detail,
                **{name: getattr(image, name) for name in self.counts},
            }
            for image in images
            if self.is_stored(image)
        ]
        # Statuses last: an image that is done is never labeled again.
        return {self.table: [row for image in images for row in image.rows], "region_status": statuses}


@dataclass(slots=True)
class Tally:
    """Counts over labeled images.

    Attributes:
        status: status -> images. rows, thin, left_out: see `LabeledImage`.
        recovered: rows that a killed run wrote, of images that have a status now.
        unreachable: why images could not be reached; they are counted in `status` only if their status is stored.
        first_error: why the first image without labels has none, `unreachable` aside.
    """

    status: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    recovered: int = 0
    thin: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unreachable: list[str] = field(default_factory=list)
    first_error: str = ""


@dataclass(slots=True)
class Progress:
    """What is done of a labeling: before this run, and by it.

    Attributes:
        done: key -> status of the images that earlier runs of the recipe finished.
        before, now: counts over these, and over the images of this run.
    """

    labeling: Labeling
    done: dict[str, str] = field(default_factory=dict)
    before: Tally = field(default_factory=Tally)
    now: Tally = field(default_factory=Tally)

    @property
    def status(self) -> Counter[str]:
        """Images by status, of all runs of the recipe."""
        return self.before.status + self.now.status

    @property
    def num_succeeded(self) -> int:
        """Images that were examined with success, by any run of the recipe."""
        return sum(self.status[name] for name in self.labeling.succeeded)

    @property
    def first_error(self) -> str:
        """Why the first image without labels has none, of those that could not be reached before others."""
        first_unreachable = self.now.unreachable[0] if self.now.unreachable else ""
        return first_unreachable or self.before.first_error or self.now.first_error

    def try_again(self, keys: Iterable[str]) -> None:
        """Take images out of those that are done."""
        for key in keys:
            self.before.status[self.done.pop(key)] -= 1

    def count(self, images: Sequence[LabeledImage], seconds: float) -> None:
        """Count the images of a part, once its rows are on disk: what a kill loses is counted by the next run."""
        tally = self.now
        for image in images:
            tally.rows += len(image.rows)
            tally.recovered += image.before
            tally.thin += image.thin
            tally.left_out.update(image.left_out)
            if self.labeling.is_stored(image):
                tally.status[image.status] += 1
            if image.is_unreachable:
                tally.unreachable.append(image.detail)
            elif image.status in self.labeling.failed:
                tally.first_error = tally.first_error or image.detail

    def find_failure(self, num_images: int, *, stopped: bool, subject: str = "") -> UserError | None:
        """Return the error that a command about `num_images` images ends with; see `find_failure`."""
        # Over all runs of the recipe: a repeated one may have nothing left but a few damaged images.
        failed = {name: self.status[name] for name in self.labeling.failed if self.status[name]}
        return find_failure(
            num_images,
            succeeded=self.num_succeeded > 0,
            failed=failed,
            unreachable=len(self.now.unreachable),
            first_error=self.first_error,
            stopped=stopped,
            subject=subject,
            hint="the same command tries them again" if set(failed) <= set(self.labeling.repeated) else "",
        )


def find_progress(collection: Path, labeling: Labeling, keys: Collection[str]) -> Progress:
    """Read which of the images `keys` are done, by the rows of this version and earlier ones.

    Rows of failures stay in the table when an image is tried again: its last row counts.
    """
    progress = Progress(labeling)
    last_rows: dict[str, tuple[str, int, int | None]] = {}
    columns = ["key", "status", "regions", "thin", "detail"]
    where = {"recipe_hash": labeling.provenance.recipe_hash}
    among = frozenset(keys)
    for part in matching_parts(collection, "region_status", columns, where=where):
        for key, status, rows, thin, detail in zip(*(part[name].to_pylist() for name in columns), strict=True):
            if key in among and labeling.is_done(status, detail):
                # Interned, because a survey has millions of images and a handful of statuses.
                last_rows[key] = sys.intern(status), rows, thin
                if status in labeling.failed:
                    progress.before.first_error = progress.before.first_error or detail
    for key, (status, rows, thin) in last_rows.items():
        progress.done[key] = status
        progress.before.status[status] += 1
        progress.before.rows += rows
        progress.before.thin += thin or 0
    return progress


def find_unfinished(collection: Path, labeling: Labeling, pending: Collection[str]) -> Counter[str]:
    """Count the labels of pending images, which a killed run wrote without their status.

    Labels of an image are all in one part, so either all of them are there or none.
    """
    where, among = {"recipe_hash": labeling.provenance.recipe_hash}, frozenset(pending)
    return Counter(
        key
        for part in matching_parts(collection, labeling.table, ["key"], where=where)
        for key in part["key"].to_pylist()
        if key in among
    )


def say_resumed(num_done: int, total: int) -> None:
    """Say how many images earlier runs finished, if any."""
    if num_done:
        say(f"resumed: {num_done:,} of {total:,} images are done")


class _LabelWriter(PartWriter[LabeledImage]):
    """Tells a watch about each image, and writes them in parts."""

    watch: CardWatch | None = None

    def add(self, results: Iterable[LabeledImage]) -> None:
        """Buffer results until the next part."""
        images = list(results)
        if self.watch is not None:
            for image in images:
                self.watch.note(image.is_unreachable)
        super().add(images)


def label_images(
    appender: AnnotationAppender,
    executor: Executor[LabeledImage],
    progress: Progress,
    *,
    images_per_part: int,
    watch: CardWatch | None = None,
) -> bool:
    """Label images and write their rows; return whether a signal stopped it.

    Args:
        appender: the collection's one writer, entered.
        executor: yields the pending images with their labels; such as `in_batches`.
        progress: of `find_progress`; counts the images that are written.
        images_per_part: how many images a kill costs at most.
        watch: ends the run once the card is away; its `is_away` says so.
    """
    labeling = progress.labeling
    writer = _LabelWriter(
        appender,
        labeling.provenance,
        labeling.split_rows,
        max_results=images_per_part,
        max_seconds=SECONDS_PER_PART,
        on_part=progress.count,
    )
    writer.watch = watch
    ending = execute(executor, writer, watch=watch)
    if ending.failure is not None:
        raise ending.failure
    return ending.stopped


def find_failure(
    total: int,
    *,
    succeeded: bool,
    failed: Mapping[str, int],
    unreachable: int,
    first_error: str,
    stopped: bool = False,
    subject: str = "",
    items: str = "examined images",
    hint: str = "",
) -> UserError | None:
    """Return the error that a labeling ends with, if nothing succeeded or images could not be reached.

    Neither is success for a script: the exit status is 3 if nothing succeeded, by this run or earlier ones, else 1. A
    run that was stopped has a status of its own, and is repeated anyway.

    Args:
        total: images that the run was about.
        failed: reason -> number of items that failed.
        unreachable: images that could not be reached; the first of them for the reason `first_error`.
        subject: collection or model, before the sentence.
        hint: sentence about what to do or what is missing.
    """
    if stopped:
        return None
    if unreachable:
        reason = describe_unreachable(unreachable, total, first_error)
        return UserError(reason) if succeeded else NothingSucceededError(reason)
    if succeeded or not any(failed.values()):
        return None
    listed = ", ".join(f"{reason} {count:,}" for reason, count in failed.items())
    first = f"; the first: {first_error}" if first_error else ""
    end = f"; {hint}" if hint else ""
    prefix = f"{subject}: " if subject else ""
    return NothingSucceededError(f"{prefix}all {sum(failed.values()):,} {items} failed ({listed}{first}){end}")


def end_command(failure: UserError | None, *, stopped: bool) -> None:
    """End a command that has printed its result: its exit status tells a script that there is more to do.

    Raises:
        UserError: the failure, with its status 1 or 3.
        KeyboardInterrupt: a signal stopped it: status 130, as Ctrl-C gives anywhere else.
    """
    if failure is not None:
        raise failure
    if stopped:
        raise KeyboardInterrupt
