"""What all importers share: pictures are examined in threads, taken in in order, or quarantined."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from foveate.records import layout
from foveate.records.importers.sample import MAX_BYTES, Problem, Sample
from foveate.records.importers.sidecar import read_sidecars
from foveate.records.pictures import BadPicture, Examined, examine
from foveate.records.writer import CollectionWriter
from foveate.settings.errors import UserError, nearest

_AHEAD_PER_WORKER = 4


def default_workers() -> int:
    """Threads that examine pictures: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def check_source(source: Path) -> Path:
    """Return `source` if it exists; else raise UserError with the nearest name in its folder."""
    if source.exists():
        return source
    folder = source.parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    raise UserError(f"{source} does not exist{nearest(source.name, names)}")


@dataclass(slots=True)
class _Prepared:
    """A picture after the threaded part: examined, or known already, or with the reason why it is refused."""

    sample: Sample
    data: bytes = b""
    examined: Examined | None = None
    refused: BadPicture | None = None


def take_samples(writer: CollectionWriter, samples: Iterable[Sample], *, workers: int, max_pixels: int) -> None:
    """Take all samples into the writer's collection, in their order.

    Pictures are read and examined by `workers` threads, a few ahead. Findings about a picture go to the
    quarantine before the picture is added, so that a commit never parts them.
    """
    for prepared in _prepare_ahead(writer, samples, workers=workers, max_pixels=max_pixels):
        _take(writer, prepared)


def _prepare_ahead(
    writer: CollectionWriter, samples: Iterable[Sample], *, workers: int, max_pixels: int
) -> Iterator[_Prepared]:
    pending: deque[Future[_Prepared]] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for sample in samples:
                pending.append(pool.submit(_prepare, writer, sample, max_pixels))
                if len(pending) >= workers * _AHEAD_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _prepare(writer: CollectionWriter, sample: Sample, max_pixels: int) -> _Prepared:
    prepared = _Prepared(sample)
    if sample.load is None:
        return prepared
    try:
        prepared.data = sample.load()
        if len(prepared.data) > MAX_BYTES:
            raise BadPicture("too many bytes", f"the picture has more than {MAX_BYTES:,} bytes")
        if hashlib.sha256(prepared.data).hexdigest() != writer.known_sha256(sample.key):
            prepared.examined = examine(prepared.data, max_pixels=max_pixels)
    except BadPicture as error:
        prepared.refused = error
    except OSError as error:
        prepared.refused = BadPicture("unreadable", f"the file cannot be read: {error.strerror or error}")
    return prepared


def _take(writer: CollectionWriter, prepared: _Prepared) -> None:
    sample = prepared.sample
    _note(writer, sample, sample.problems)
    writer.summary.ignored_files += sample.ignored
    if sample.only_problems:
        return
    try:
        layout.check_key(sample.key)
    except UserError as error:
        _note(writer, sample, [Problem("picture", "unusable key", str(error))])
        return
    if sample.load is None:
        status = read_sidecars(None, sample.json, size=None).status
        if status and status != "success":
            problem = Problem("picture", "download failed", f"the JSON sidecar says status {status!r}")
        else:
            problem = Problem("picture", "no picture", "there are sidecars but no picture of this key")
        _note(writer, sample, [problem])
        return
    if prepared.refused is not None:
        _note(writer, sample, [Problem("picture", prepared.refused.reason, str(prepared.refused))])
        return
    if prepared.examined is None or not writer.accepts(sample.key, prepared.examined.sha256):
        # Already there, removed or a duplicate: its sidecars were read, or are refused with it.
        writer.add(sample.key, prepared.data, examined=prepared.examined, source=sample.source)
        return
    info = prepared.examined.info
    sidecar = read_sidecars(sample.text, sample.json, size=(info.width, info.height))
    _note(writer, sample, sidecar.problems)
    writer.summary.regions_clipped += sidecar.clipped
    writer.summary.texts_cleaned += sidecar.cleaned
    writer.summary.without_text += not sidecar.captions and not sidecar.regions
    writer.add(
        sample.key,
        prepared.data,
        captions=sidecar.captions,
        regions=sidecar.regions,
        labels=sidecar.labels,
        group=sidecar.group or sample.group,
        split=sidecar.split,
        extra={"origin": [{"url": sidecar.url}]} if sidecar.url else None,
        examined=prepared.examined,
        source=sample.source,
    )


def _note(writer: CollectionWriter, sample: Sample, problems: Iterable[Problem]) -> None:
    for problem in problems:
        writer.quarantine(
            sample.key,
            problem.reason,
            problem.detail,
            sample.source,
            subject=problem.subject,
            position=problem.position,
        )
