"""The steps that all labeling verbs share: what is done, what is tried again, how a run is stopped, how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest

import tiny
from foveate.core.errors import NothingSucceededError, UserError
from foveate.core.stopping import StopRequest
from foveate.records.annotate import PartWriter, matching_parts
from foveate.records.appender import AnnotationAppender
from foveate.records.labeling import (
    LabeledImage,
    Labeling,
    Progress,
    Stopping,
    end_command,
    execute,
    find_failure,
    find_progress,
    find_unfinished,
    in_batches,
    label_images,
)
from foveate.records.tables import Provenance

BOX = {"x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5, "phrase": "boat", "label": "boat"}
KEYS = [f"train-{number:02}" for number in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny.make_collection(tmp_path / "shapes")
    return tmp_path / "shapes"


def labeling(*, repeated: Sequence[str] = ()) -> Labeling:
    return Labeling(Provenance("test", "m", "0" * 16), "regions", ("ok",), ("broken", "full", "decode_error"), repeated)


def label(image: LabeledImage) -> LabeledImage:
    image.rows = [{"key": image.key, **BOX}] if image.status == "ok" else []
    return image


def run(path: Path, kind: Labeling, images: Sequence[LabeledImage]) -> Progress:
    """Label the images that are not done, two at a time."""
    with AnnotationAppender(path, purpose="a test") as appender:
        progress = find_progress(path, kind, KEYS)
        pending = [image for image in images if image.key not in progress.done]
        executor = in_batches(lambda batch: map(label, batch), pending, 2, description="testing")
        assert not label_images(appender, executor, progress, images_per_part=2)
    return progress


def statuses(path: Path) -> dict[str, str]:
    parts = matching_parts(path, "region_status", ["key", "status"], where={"recipe_hash": "0" * 16})
    return {row["key"]: row["status"] for part in parts for row in part.to_pylist()}


@pytest.mark.parametrize("repeated", [(), ("broken",)])
def test_an_image_that_is_away_is_never_done(path: Path, repeated: Sequence[str]) -> None:
    """It has a row only if the status of the row says that it is tried again."""
    kind = labeling(repeated=repeated)
    away = LabeledImage("train-01", "broken", detail="card", is_unreachable=True)
    damaged = LabeledImage("train-02", "full", detail="damaged")
    images = [LabeledImage("train-00", "ok"), away, damaged]
    for number_before in (0, 2):
        progress = run(path, kind, images)
        assert (len(progress.done), progress.now.unreachable) == (number_before, ["card"])
        assert type(progress.find_failure(3, stopped=False)) is UserError
        assert ("train-01" in statuses(path)) == bool(repeated)
    progress = run(path, kind, [LabeledImage(image.key, "ok") for image in images])
    assert progress.status == {"ok": 2, "full": 1}
    assert (progress.before.rows, progress.now.rows, progress.first_error) == (1, 1, "damaged")
    assert progress.find_failure(3, stopped=False) is None


def test_rows_of_earlier_versions_about_images_that_were_away_are_not_done(path: Path) -> None:
    rows = [
        {"key": "train-00", "status": "decode_error", "detail": "/card/a.jpg is missing: it was moved or deleted"},
        {"key": "train-01", "status": "decode_error", "detail": "the image is truncated"},
        {"key": "train-02", "status": "full", "detail": "the answer cannot be read: [1, 2"},
    ]
    with AnnotationAppender(path, purpose="a test") as appender:
        appender.append("region_status", rows, labeling().provenance)
    done = {"train-01": "decode_error", "train-02": "full"}
    progress = find_progress(path, labeling(), KEYS)
    assert (progress.done, progress.before.first_error) == (done, "the image is truncated")
    assert find_progress(path, labeling(), ["train-05"]).done == {}


def test_rows_without_a_status_are_counted_by_image(path: Path) -> None:
    with AnnotationAppender(path, purpose="a test") as appender:
        appender.append("regions", [{"key": key, **BOX} for key in KEYS[:2]], labeling().provenance)
    assert find_unfinished(path, labeling(), KEYS[1:]) == {"train-01": 1}


@pytest.mark.posix
def test_a_signal_ends_a_run_after_its_batch(path: Path) -> None:
    def label_batch(batch: Sequence[str]) -> Iterator[LabeledImage]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from (label(LabeledImage(key, "ok")) for key in batch)

    with AnnotationAppender(path, purpose="a test") as appender:
        progress = Progress(labeling())
        executor = in_batches(label_batch, KEYS, 4, description="testing")
        assert label_images(appender, executor, progress, images_per_part=100)
    assert statuses(path) == dict.fromkeys(KEYS[:4], "ok")
    assert progress.now.status == {"ok": 4}


@pytest.mark.posix
def test_a_signal_reaches_the_caller_whose_work_goes_on_after_the_labels(path: Path) -> None:
    def label_batch(batch: Sequence[str]) -> Iterator[LabeledImage]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from (label(LabeledImage(key, "ok")) for key in batch)

    kind = labeling()
    with AnnotationAppender(path, purpose="a test") as appender, StopRequest() as stop:
        writer = PartWriter(appender, kind.provenance, kind.split_rows, max_results=10, max_seconds=60)
        ending = execute(in_batches(label_batch, KEYS, 4, description="testing"), writer, stop=stop)
        assert (ending.stopped, stop.signal_name) == (True, "SIGTERM")
    assert len(statuses(path)) == 4


def test_what_a_stream_gave_before_its_error_is_written(path: Path) -> None:
    async def stream(stopping: Stopping) -> AsyncGenerator[list[LabeledImage], None]:
        assert not stopping()
        yield [label(LabeledImage("train-00", "ok"))]
        yield []
        raise UserError("no more credit")

    with AnnotationAppender(path, purpose="a test") as appender:
        kind = labeling()
        writer = PartWriter(appender, kind.provenance, kind.split_rows, max_results=10, max_seconds=60)
        ending = execute(stream, writer)
    assert (ending.stopped, str(ending.failure)) == (False, "no more credit")
    assert statuses(path) == {"train-00": "ok"}


@pytest.mark.parametrize(
    ("succeeded", "failed", "unreachable", "status", "text"),
    [
        (True, {}, 0, None, ""),
        (True, {"broken": 2}, 0, None, ""),
        (False, {}, 0, None, ""),
        (True, {"broken": 2}, 2, 1, "2 of 9 images could not be reached (the first: why)"),
        (False, {"broken": 2}, 2, 3, "2 of 9 images could not be reached (the first: why)"),
        (False, {"broken": 1000, "full": 1}, 0, 3, "shapes: all 1,001 examined images failed (broken 1,000, full 1; "),
    ],
)
def test_every_labeling_ends_in_one_way(
    succeeded: bool, failed: dict[str, int], unreachable: int, status: int | None, text: str
) -> None:
    def find(*, stopped: bool) -> UserError | None:
        return find_failure(
            9,
            succeeded=succeeded,
            failed=failed,
            unreachable=unreachable,
            first_error="why",
            stopped=stopped,
            subject="shapes",
        )

    failure = find(stopped=False)
    assert (failure and failure.exit_code) == status
    assert isinstance(failure, NothingSucceededError) == (status == 3)
    assert text in str(failure or "")
    assert find(stopped=True) is None, "a run that was stopped has a status of its own"
    if failure is not None:
        with pytest.raises(UserError):
            end_command(failure, stopped=True)
    with pytest.raises(KeyboardInterrupt):
        end_command(None, stopped=True)
    end_command(None, stopped=False)
